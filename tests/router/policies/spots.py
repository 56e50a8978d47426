"""Workers and calls that need no network: what a policy sees of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from espalier.calls import Call
from espalier.policies import Policy


@dataclass
class Spot:
    """A worker, as a policy sees it."""

    ordinal: int
    in_flight: int = 0
    host: str = ""

    @property
    def url(self) -> str:
        return f"http://{self.host or f'worker-{self.ordinal}'}:30000"


def spots(count: int, loads: Iterable[int] = ()) -> tuple[Spot, ...]:
    """Return `count` workers, idle but for `loads`."""
    made = tuple(Spot(ordinal) for ordinal in range(1, count + 1))
    for spot, load in zip(made, loads, strict=False):
        spot.in_flight = load
    return made


def call(body: bytes = b"{}", *, path: str = "/generate", **headers: str) -> Call:
    """Return a call; `x_session_id="s"` becomes a header."""
    return Call(
        method="POST",
        path=path,
        target=path.encode(),
        headers=[(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        body=body,
        request_id="r",
    )


def generate(prompt: str | Sequence[int], **rest: object) -> Call:
    """Return a `/generate` call, by text or by token ids."""
    name = "text" if isinstance(prompt, str) else "input_ids"
    return call(msgspec.json.encode({name: prompt, "sampling_params": {"temperature": 1}} | rest))


CALL = call()


def ordinals(policy: Policy, candidates: Sequence[Spot], times: int, asked: Call = CALL) -> list[int]:
    """Return whom `policy` chooses, `times` times."""
    return [policy.choose(asked, candidates).ordinal for _ in range(times)]
