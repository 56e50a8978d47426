"""Ending what still runs when the batch is complete.

SGLang ends a request by its id. (It also ends those whose ids begin with it, but only when the id itself is
that of a running request, so that no prefix stands for a whole rollout.) One call for each request therefore,
many at a time; or one for everything, where the rollout has the workers to itself.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from ..errors import HttpError, RolloutError
from .client import CONTROL_CONNECTIONS
from .config import RolloutConfig
from .problems import RouterUnreachable
from .sample import Sample
from .state import GroupTask, RolloutState, rollout_state

ABORT_GRACE_S: Final = 3.0
"""Time for aborted requests to come back with what they have."""

ABORT_COST_S: Final = 0.01
"""Added to it for each request that runs: some 300 to 1,000 aborts a second get through a router."""

ABORT_INTERVAL_S: Final = 0.5
"""Time between aborts: one that overtakes its request finds nothing to stop, and is sent again."""

_log = logging.getLogger(__name__)


async def abort(args: RolloutConfig, rollout_id: int) -> list[list[Sample]]:
    """Stop every group that is still running; return those groups, by index, with what they have.

    Requests that reached a worker end through the router's `/abort_request`. What has not ended after
    `ABORT_GRACE_S`, and `ABORT_COST_S` more for each request, is cancelled, and so is a reward that is still
    being thought about.
    """
    async with rollout_state(args) as state:
        state.aborted = True
        running = dict(state.pendings)
        if running:
            state.requests.note_abort()
            _log.debug("event=rollout_abort rollout_id=%d groups=%d", rollout_id, len(running))
        grace_s = ABORT_GRACE_S + ABORT_COST_S * len(state.running_rids)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await _stop_requests(state, list(running))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        state.pendings.clear()
    return [group for _, group in sorted(running.values(), key=lambda pending: pending[0])]


async def _stop_requests(state: RolloutState, tasks: Sequence[GroupTask]) -> None:
    """Abort what runs until nothing does, and give the groups one interval more to come to their end."""
    is_last_round = False
    while any(not task.done() for task in tasks) and not is_last_round:
        rids = state.running_rids
        is_last_round = not rids or not await _abort(state, rids)
        await asyncio.wait(tasks, timeout=ABORT_INTERVAL_S)


async def _abort(state: RolloutState, rids: Sequence[str]) -> bool:
    """Send a round of aborts; tell whether there is a router that hears them.

    Some may fail, for a worker that is gone: the next round sends them again.
    """
    try:
        if state.args.abort_all:
            await state.client.abort_all()
            return True
    except RouterUnreachable:
        return False
    except (HttpError, RolloutError):
        return True
    remaining = iter(rids)
    is_heard = True

    async def work() -> None:
        nonlocal is_heard
        for rid in remaining:
            if not is_heard:
                return
            try:
                await state.client.abort(rid)
            except RouterUnreachable:
                is_heard = False
            except (HttpError, RolloutError) as error:
                _log.debug("event=abort_failed rid=%s reason=%s", rid, error)

    await asyncio.gather(*(work() for _ in range(min(len(rids), CONTROL_CONNECTIONS))))
    return is_heard
