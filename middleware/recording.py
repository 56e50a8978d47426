"""The recording of one call: what its answers say, put after the prompts that they answer."""

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from .prompts import Asked
from .replies import (
    META_INFO,
    NOWHERE,
    UNREADABLE,
    Answer,
    Refused,
    Unrecordable,
    join_list,
    read_answer,
    read_sampled,
    split_list,
    without_logprobs,
)
from .segments import Context
from .tally import Tally
from .tokenizer import Tokenizer
from .tree import TokenTree

log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """A prompt ready to be sent: the context that holds its tokens, and how many were reused."""

    context: Context
    ids: list[int]
    reused: int


class _Boundary:
    """Keeps the promise that the cache never costs a reply: an error ends what is inside, no more."""

    __slots__ = ("_recording",)

    def __init__(self, recording: "Recording") -> None:
        self._recording = recording

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return error is not None and self._recording.note(error)


class Recording:
    """Records the answers to one call. Its contexts are held by whoever made it.

    An answer that cannot be recorded is counted, and reaches its client all the same.
    """

    def __init__(
        self,
        tree: TokenTree,
        tally: Tally,
        asked: Asked,
        opened: Sequence[Opened],
        tokenizer: Tokenizer | None,
        *,
        request_id: str,
    ) -> None:
        self.asked = asked
        self._request_id = request_id
        self._tally = tally
        self._tree = tree
        self._opened = opened
        self._tokenizer = tokenizer
        self._answered: set[int] = set()

    async def take(self, content: bytes, *, takes_out: bool) -> bytes:
        """Record a whole reply; return it as the client asked for it.

        `takes_out` says whether to take out the log-probabilities that were not asked for.
        """
        if not self.asked.is_many:
            return self._take_one(0, content, takes_out=takes_out)
        entries = split_list(content)
        if entries is None or len(entries) != self.asked.generations:
            self.fail("the reply is no list of as many generations as were asked for")
            return content
        shown: list[bytes] = []
        for index, entry in enumerate(entries):
            shown.append(self._take_one(index, entry, takes_out=takes_out))
            await asyncio.sleep(0)  # a batch may be large: others get their turn between its entries
        return join_list(shown) if takes_out else content

    def _take_one(self, index: int, content: bytes, *, takes_out: bool) -> bytes:
        """Record what tells all of generation `index`; return it as the client asked for it."""
        rest, meta_at = content, NOWHERE  # what cannot be read is not cut either, unless it is decoded
        with self.boundary():
            answer = read_answer(content)
            rest, meta_at = answer.content, answer.content.find(META_INFO)
            self.record(index, answer)
        if not takes_out or self.asked.prompts[index // self.asked.samples].wants_logprobs:
            return content
        try:
            return without_logprobs(rest, meta_at)
        except UNREADABLE:
            return content

    def record(self, index: int, answer: Answer) -> None:
        """Record what `answer` tells of generation `index`; call it inside a `boundary`.

        Raises: Unrecordable.
        """
        at = index // self.asked.samples
        opened = self._opened[at]
        sampled = read_sampled(
            answer,
            self.asked.prompts[at],
            self._tokenizer,
            prompt_tokens=len(opened.ids),
            is_streamed=self.asked.is_streamed,
        )
        self._tree.record(opened.context, sampled)
        self._count(at, opened, len(sampled.tokens))

    def boundary(self) -> _Boundary:
        """Return a context in which what goes wrong is counted by its reason, and costs nothing else."""
        return _Boundary(self)

    def note(self, error: BaseException) -> bool:
        """Count what went wrong, and say whether to go on: with all but what ends the call or the process."""
        if isinstance(error, Refused):
            self.refuse()
        elif isinstance(error, Unrecordable):
            self.fail(error)
        elif isinstance(error, Exception):
            log.error("radix_tree_failed request_id=%s", self._request_id, exc_info=error)
            self.fail(repr(error))
        else:
            return False
        return True

    def break_off(self) -> None:
        """Count a generation whose end was not seen."""
        self._tally.add("streams_broken_off_total")

    def refuse(self) -> None:
        """Count a worker's refusal that came as a reply with status 200."""
        self._tally.add("replies_refused_total")

    def fail(self, detail: object) -> None:
        """Count an answer that cannot be recorded, and say why."""
        self._tally.fail(detail, self._request_id)

    def _count(self, at: int, opened: Opened, generated_tokens: int) -> None:
        add = self._tally.add
        if not self._answered:
            add("calls_recorded_total")
        if at not in self._answered:
            self._answered.add(at)
            add("prompt_tokens_total", len(opened.ids))
            add("reused_tokens_total", opened.reused)
        add("generations_recorded_total")
        add("generated_tokens_total", generated_tokens)
