"""Records a stream on its way to the client: events of `/generate`, as they arrive.

*Invariant*: what the client gets is what the worker sent, in the same pieces and at once, but for the
log-probabilities that the client had not asked for. What is recorded was sampled, all of it and in order.

*Theory of operation*: in each event a worker tells of a generation either all from the first token on
(SGLang's default), or what is new (`--incremental-streaming-output`). Which of the two is seen at the second
event, by `completion_tokens`. From then on an event that tells all again is not read, unless it is the last
one: reading each would take time that grows with the square of the length. The latest is kept unread, in case
the stream breaks off after it. Only a line that lacks its end is ever kept back, and only where something has
to be taken out of it.

A stream that breaks off, because its worker died or its client hung up, is recorded as far as it was seen:
those tokens were read and sampled, and a partial rollout goes on from them. It has no `finish_type`, and its
weight versions are not known where they changed on the way.
"""

import re
from array import array
from collections.abc import AsyncIterator, Callable

import msgspec

from ..calls import ByteStream
from ..sglang import MetaInfo
from .logprobs import extend_logprobs
from .recording import Recording
from .replies import META_INFO, UNREADABLE, Answer, Unrecordable, has_meta_info, read_answer, without_logprobs
from .segments import Logprobs, Tokens

SSE_TYPE = b"text/event-stream"

_DATA = b"data:"
_ERROR = b'{"error"'
_UNFINISHED = b'"finish_reason":null'
"""Nothing that stands in a text: there, quotes have backslashes."""

_INDEX_AT_END = re.compile(rb',"index":([0-9]{1,9})\}\Z')
_INDEX_BYTES = 24
"""No more than the index takes at the end of an event."""


class _Indexed(msgspec.Struct):
    index: int


_decode_index = msgspec.json.Decoder(_Indexed).decode


class StreamReader:
    """Reads a stream as it passes: pure, fed with chunks. Closed by `end`."""

    def __init__(self, recording: Recording, *, takes_out: bool, max_bytes: int) -> None:
        """Record by `recording`; nothing longer than `max_bytes` is kept of a line or of a generation.

        `takes_out` says whether to take out the log-probabilities that were not asked for.
        """
        self._recording = recording
        self._asked = recording.asked
        self._takes_out = takes_out
        self._max_bytes = max_bytes
        self._told: dict[int, _Told] = {}
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._is_lost = False
        """Whether the reader no longer follows."""

    def feed(self, chunk: bytes) -> bytes:
        """Take what has come; return what the client gets of it now. Never raises."""
        if self._is_lost:
            return chunk
        kept = self._kept
        with self._recording.boundary():
            return self._read(chunk)
        self._is_lost, self._kept = True, []
        return b"".join([*kept, chunk]) if self._takes_out else chunk

    def end(self, *, is_complete: bool) -> bytes:
        """Record what was told of generations that have not finished.

        Returns what was kept back for the client, where `is_complete`: the worker has ended the stream.
        Never raises. Harmless when repeated.
        """
        rest = b""
        if is_complete and self._kept:
            rest = self.feed(b"\n")
            rest = rest[:-1] if self._takes_out else b""
        self._kept = []
        for index, told in self._told.items():
            if not told.is_closed:
                told.is_closed = True
                self._record_so_far(index, told)
        return rest

    def _read(self, chunk: bytes) -> bytes:
        """Do what `feed` does. Raises: Unrecordable where the stream cannot be followed any further."""
        end = chunk.rfind(b"\n") + 1
        if not end:
            self._keep(chunk)
            return b"" if self._takes_out else chunk
        lines = b"".join([*self._kept, chunk[:end]]) if self._kept else chunk[:end]
        shown: list[bytes] = []
        start = 0
        while start < len(lines):
            stop = lines.find(b"\n", start) + 1
            changed = self._read_line(lines, start, stop)
            if self._takes_out:
                shown.append(lines[start:stop] if changed is None else changed)
            start = stop
        self._kept, self._kept_bytes = [], 0
        if end < len(chunk):
            self._keep(chunk[end:])
        return b"".join(shown) if self._takes_out else chunk

    def _keep(self, part: bytes) -> None:
        self._kept_bytes += len(part)
        if self._kept_bytes > self._max_bytes:
            raise Unrecordable("a line of the stream is over max_reply_bytes")
        if b"\r" in part[:-1]:
            raise Unrecordable("the stream's lines do not end as SGLang's do")
        self._kept.append(part)

    def _read_line(self, lines: bytes, start: int, stop: int) -> bytes | None:
        """Read the line from `start` to `stop`; return what the client gets instead of it, None for itself.

        Raises: Unrecordable where the stream cannot be followed any further.
        """
        if not lines.startswith(_DATA, start):
            return None
        begin = lines.find(b"{", start, stop)
        if begin < 0 or lines[start + len(_DATA) : begin].strip():
            return None
        end = stop - 2 if lines.endswith(b"\r\n", begin, stop) else stop - 1
        event = lines[begin:end]
        if event.startswith(_ERROR):
            self._recording.refuse()
            return None
        meta_at = event.find(META_INFO)
        if meta_at < 0 and not has_meta_info(event):
            self._recording.fail("an event without meta_info")
            return None
        index = self._index_of(event)
        told = self._told.get(index)
        if told is None:
            told = self._told[index] = _Told(self._max_bytes)
        if not told.is_closed:
            self._add(index, told, event, meta_at)
        if not self._takes_out or self._asked.prompts[index // self._asked.samples].wants_logprobs:
            return None
        try:
            return lines[start:begin] + without_logprobs(event, meta_at) + lines[end:stop]
        except UNREADABLE:
            return None

    def _index_of(self, event: bytes) -> int:
        """Return which generation an event tells of."""
        if not self._asked.is_many:
            return 0
        found = _INDEX_AT_END.search(event, max(0, len(event) - _INDEX_BYTES))
        try:
            index = int(found[1]) if found is not None else _decode_index(event).index
        except UNREADABLE as error:
            raise Unrecordable(f"an event without index: {error}") from None
        if not 0 <= index < self._asked.generations:
            raise Unrecordable(f"an event of generation {index} of {self._asked.generations}")
        return index

    def _add(self, index: int, told: "_Told", event: bytes, meta_at: int) -> None:
        with self._recording.boundary():
            told.add(event, is_unfinished=meta_at >= 0 and event.find(_UNFINISHED, meta_at) >= 0)
            if told.is_finished:
                told.is_closed = True
                self._recording.record(index, told.answer())
            return
        told.is_closed = True

    def _record_so_far(self, index: int, told: "_Told") -> None:
        with self._recording.boundary():
            self._recording.break_off()
            told.read_latest()
            if told.has_tokens:
                self._recording.record(index, told.answer())


class _Told:
    """What the events of one generation have told so far."""

    __slots__ = (
        "_latest",
        "_logprobs",
        "_max_bytes",
        "_meta",
        "_read_bytes",
        "_tells_all",
        "_texts",
        "_tokens",
        "is_closed",
    )

    def __init__(self, max_bytes: int) -> None:
        self.is_closed = False
        """Whether it was recorded, or cannot be."""
        self._max_bytes = max_bytes
        self._read_bytes = 0
        self._tokens: Tokens = array("i")
        self._logprobs: Logprobs | None = None
        self._texts: list[str | None] = []
        self._meta: MetaInfo | None = None
        self._tells_all = False
        self._latest: bytes | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the worker has told how the generation ended."""
        return self._meta is not None and self._meta.finish_reason is not None

    @property
    def has_tokens(self) -> bool:
        """Whether any token was told."""
        return len(self._tokens) > 0

    def add(self, event: bytes, *, is_unfinished: bool) -> None:
        """Take the next event. `is_unfinished` where it is plain to see that another one will follow.

        Raises: Unrecordable where the event is none, or something is missing before it.
        """
        if self._tells_all and is_unfinished:
            self._latest = event
        else:
            self._read(event)

    def read_latest(self) -> None:
        """Read the event that was kept unread, if there is one. Raises: Unrecordable."""
        if self._latest is not None:
            self._read(self._latest)

    def answer(self) -> Answer:
        """Return all that was told, as one answer."""
        assert self._meta is not None
        texts = [text for text in self._texts if text is not None]
        return Answer(
            tokens=self._tokens,
            logprobs=self._logprobs,
            text="".join(texts) if len(texts) == len(self._texts) else None,
            meta=self._meta,
            content=b"",
        )

    def _read(self, event: bytes) -> None:
        self._latest = None
        answer = read_answer(event)
        meta, known, told = answer.meta, len(self._tokens), len(answer.tokens)
        total = told if meta.completion_tokens is None else meta.completion_tokens
        if told >= total:
            # A worker that has sampled on before it wrote the event may tell more than it has counted.
            self._tells_all = known > 0
            self._tokens, self._logprobs, self._texts = answer.tokens, answer.logprobs, [answer.text]
        elif known + told == total:
            self._extend(answer, len(event))
        elif known != total:
            raise Unrecordable(f"an event tells {told} of {total} tokens, after {known}")
        if self._meta is not None and meta.weight_version != self._meta.weight_version:
            meta.weight_version = None  # and stays so: only the last event's spans say where it changed
        self._meta = meta

    def _extend(self, answer: Answer, size_bytes: int) -> None:
        self._read_bytes += size_bytes
        if self._read_bytes > self._max_bytes:
            raise Unrecordable("the generation is over max_reply_bytes")
        if self._tokens and answer.tokens and (self._logprobs is None) != (answer.logprobs is None):
            raise Unrecordable("some events have log-probabilities, and some have none")
        if self._logprobs is not None and answer.logprobs is not None:
            self._logprobs = extend_logprobs(self._logprobs, answer.logprobs)
        elif not self._tokens:
            self._logprobs = answer.logprobs
        self._tokens += answer.tokens
        self._texts.append(answer.text)


class RecordedStream:
    """A stream that is recorded as it passes. It ends once: at its end, when closed, or when dropped."""

    __slots__ = ("_chunks", "_on_end", "_reader", "_stream")

    def __init__(self, stream: ByteStream, reader: StreamReader, on_end: Callable[[], None]) -> None:
        """Relay `stream` past `reader`; `on_end` is called when it has ended, however that is."""
        self._on_end: Callable[[], None] | None = on_end
        self._reader = reader
        self._stream = stream
        self._chunks: AsyncIterator[bytes] = aiter(stream)

    def __aiter__(self) -> "RecordedStream":
        """Iterate over the chunks, once."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next chunk as soon as there is something of it for the client."""
        while True:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                rest = self._end(is_complete=True)
                if rest:
                    return rest
                raise
            except BaseException:
                await self.aclose()
                raise
            shown = self._reader.feed(chunk)
            if shown:
                return shown

    async def aclose(self) -> None:
        """Give up what was not read."""
        self._end(is_complete=False)
        await self._stream.aclose()

    def __del__(self) -> None:
        """Let go of what nobody will read."""
        self._end(is_complete=False)

    def _end(self, *, is_complete: bool) -> bytes:
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return b""
        try:
            return self._reader.end(is_complete=is_complete)
        finally:
            on_end()
