"""A stream of generations: bytes into events, events into one reply. Pure.

SGLang's events carry everything so far, or with `--incremental-streaming-output` what is new. The count of
tokens that each event tells decides which it is.
"""

from typing import Final

import msgspec

from ..sglang import FinishReason, FinishType, GenerateReply, MetaInfo, TokenLogprob, decode_reply
from .problems import BadReply
from .replies import error_text

MAX_EVENT_BYTES: Final = 64 * 2**20
"""Longest event: 32,000 tokens with log-probabilities take about 2 MB, and an event may hold all of them."""

_DONE: Final = b"[DONE]"
_FIELD: Final = b"data:"


class EventSplitter:
    """Cuts a body of server-sent events into the data of each."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that `chunk` completes; lines that are no data are passed over.

        Raises: BadReply where an event is longer than `MAX_EVENT_BYTES`.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BadReply(f"an event of the stream is longer than {MAX_EVENT_BYTES} bytes")
        return [line.removeprefix(_FIELD).strip() for line in lines if line.startswith(_FIELD)]


class StreamedReply:
    """Adds up the events of one generation."""

    def __init__(self) -> None:
        self.is_done = False
        """the stream has said that it ends"""
        self._text: str | None = None
        self._log_probs: list[TokenLogprob] = []
        self._meta: MetaInfo | None = None

    @property
    def tokens_so_far(self) -> int:
        """How many tokens have come."""
        return len(self._log_probs)

    def add(self, data: bytes) -> None:
        """Add the data of an event.

        Raises: BadReply where it is no generation, tells of an error, or leaves tokens out.
        """
        if data == _DONE:
            self.is_done = True
            return
        try:
            event = decode_reply(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BadReply(f"the stream has an event that is no generation: {error_text(data)}") from None
        found = event.meta_info.output_token_logprobs
        if found is None:
            raise BadReply("the worker's stream has no log-probabilities, though they were asked for")
        count = event.meta_info.completion_tokens
        if count is None or count == len(found):
            self._log_probs, self._text = found, event.text
        elif count == len(self._log_probs) + len(found):
            self._log_probs += found
            self._text = None if event.text is None else (self._text or "") + event.text
        else:
            raise BadReply(
                f"the stream tells of {count} tokens, but {len(self._log_probs)} came before and "
                f"{len(found)} with this event"
            )
        self._meta = event.meta_info

    def whole(self) -> GenerateReply:
        """Return the reply that the events add up to.

        Raises: BadReply where the stream has not come to its end.
        """
        if self._meta is None or self._meta.finish_reason is None:
            raise BadReply(f"the stream ended after {self.tokens_so_far} tokens without saying why")
        return self._reply(self._meta)

    def cut_off(self, why: str) -> GenerateReply:
        """Return what has come as the reply of a request that was aborted."""
        meta = self._meta or MetaInfo()
        reason = FinishReason(type=FinishType.ABORT, message=why)
        return self._reply(msgspec.structs.replace(meta, finish_reason=reason))

    def _reply(self, meta: MetaInfo) -> GenerateReply:
        meta = msgspec.structs.replace(meta, output_token_logprobs=self._log_probs)
        return GenerateReply(
            text=self._text, output_ids=[token for _, token, _ in self._log_probs], meta_info=meta
        )
