"""An end to waiting for code that is not ours."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from ..errors import RolloutError


@contextlib.asynccontextmanager
async def deadline(timeout_s: float | None, what: str, late: type[RolloutError]) -> AsyncIterator[None]:
    """Cancel the block after `timeout_s` seconds; None waits without end.

    Raises: `late`, which says that `what` took too long. A TimeoutError of the block's own is passed on.
    """
    try:
        async with asyncio.timeout(timeout_s) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise late(f"{what} took longer than {timeout_s:g} s") from None
