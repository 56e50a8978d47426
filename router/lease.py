"""A call's hold on a worker while its reply streams.

*Invariant*: a lease ends exactly once: complete, broken by the worker, or given up by the client.
"""

from collections.abc import AsyncIterator, Callable
from enum import Enum, auto

from ..calls import ByteStream
from ..errors import HttpError
from .rids import RidRestorer


class End(Enum):
    """How a lease ended, where the worker did not break it."""

    COMPLETE = auto()
    GIVEN_UP = auto()


class LeasedStream:
    """A stream that gives its worker back once: at its end, when it is closed, or when it is dropped."""

    __slots__ = ("_chunks", "_on_end", "_restorer", "_stream")

    def __init__(
        self, stream: ByteStream, on_end: "Callable[[End | HttpError], None]", restorer: RidRestorer | None
    ) -> None:
        """Relay `stream`; `on_end` is told how it ended, `restorer` puts the client's rid back."""
        self._stream = stream
        self._chunks: AsyncIterator[bytes] = aiter(stream)
        self._on_end: Callable[[End | HttpError], None] | None = on_end
        self._restorer = restorer

    def __aiter__(self) -> "LeasedStream":
        """Iterate over the chunks, once."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next chunk as soon as it is there."""
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._end(End.COMPLETE)
            rest = self._restorer.rest() if self._restorer is not None else b""
            if rest:
                return rest
            raise
        except HttpError as error:
            self._end(error)
            raise
        except BaseException:
            await self.aclose()
            raise
        return self._restorer.feed(chunk) if self._restorer is not None else chunk

    async def aclose(self) -> None:
        """Give up what was not read."""
        self._end(End.GIVEN_UP)
        await self._stream.aclose()

    def __del__(self) -> None:
        """Give up what nobody will read."""
        self._end(End.GIVEN_UP)

    def _end(self, how: End | HttpError) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(how)
