"""The ways in which a worker misbehaves on purpose.

    refuse              new connections are refused for `duration_s`, then the worker listens again; under
                        a server that is not ours, connections are reset instead
    hang                the call is taken and never answered
    die_before_headers  the connection is reset instead of an answer
    die_mid_reply       the connection ends half-way through the body, or in a stream after `after_events`
    queue_full          503, as when too many requests wait
    slow_drip           the body comes in pieces of `chunk_bytes`, `delay_s` apart
    http_error          `status` with SGLang's bare text "Internal Server Error"
    close_after_reply   a whole answer, then the connection is closed unannounced: a pooled connection is
                        dead when it is used again

`POST /simulator/faults` with `{"fault": "hang", "calls": 2}` adds one, `GET` lists them, `DELETE` clears
them. A fault hits the calls of `path` (`*`: every call but those of /simulator), each `every`-th of them,
`calls` times (null: until it is cleared). Where several fit, the oldest hits.
"""

from collections.abc import Sequence
from typing import Annotated, get_args

import msgspec

from .settings import FaultName

UNTIL_CLEARED: None = None
MAX_FAULTS = 16
"""Faults that can be set at the same time."""

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]

FAULT_NAMES: Sequence[str] = get_args(FaultName)


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to misbehave, and for which calls."""

    fault: FaultName
    path: str = "/generate"
    calls: _Positive | None = UNTIL_CLEARED
    every: _Positive = 1
    duration_s: _Seconds = 1.0
    after_events: Annotated[int, msgspec.Meta(ge=0)] = 2
    delay_s: _Seconds = 0.05
    chunk_bytes: _Positive = 16
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 500


decode_fault = msgspec.json.Decoder(Fault).decode
"""Read a fault. Raises msgspec.DecodeError, ValidationError included, naming the field that does not fit."""


class FaultState(msgspec.Struct, kw_only=True):
    """A fault that is set: how many calls it saw and hit."""

    fault: Fault
    seen: int = 0
    hits: int = 0


class Faults:
    """The faults that are set."""

    def __init__(self) -> None:
        self.states: list[FaultState] = []

    def add(self, fault: Fault) -> None:
        """Set a fault. Raises: ValueError where too many are set."""
        if len(self.states) >= MAX_FAULTS:
            raise ValueError(f"at most {MAX_FAULTS} faults can be set; DELETE /simulator/faults clears them")
        self.states.append(FaultState(fault=fault))

    def clear(self) -> None:
        """Behave again."""
        self.states.clear()

    def claim(self, path: str) -> Fault | None:
        """Return the fault that hits this call of `path`, and count it; None where none does."""
        for state in self.states:
            fault = state.fault
            if fault.path not in ("*", path):
                continue
            state.seen += 1
            if state.seen % fault.every:
                continue
            state.hits += 1
            if fault.calls is not None and state.hits >= fault.calls:
                self.states.remove(state)
            return fault
        return None
