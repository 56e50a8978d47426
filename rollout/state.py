"""What the samples of one running rollout share: connections, plug-ins, and whether it is over.

slime keeps this in a singleton. Here it belongs to the task that runs the rollout and to the tasks that it
starts (a context variable), so that two rollouts in one process do not meet.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any, TypeAlias
from uuid import uuid4

from .client import RouterClient
from .config import RolloutConfig
from .outage import Outages
from .plugins import Plugins
from .progress import current_observer
from .sample import Sample
from .timeline import RequestLog
from .tokenizer import PromptTokenizer, load_tokenizer

GroupTask: TypeAlias = asyncio.Task[list[Sample | list[Sample]]]
"""Generates and rewards one group."""


class RolloutState:
    """The state of one rollout.

    `pendings` holds the tasks of the groups that are not done yet, each with the group's position in the
    order of submission and its samples as they were submitted.
    """

    def __init__(self, args: RolloutConfig, client: RouterClient) -> None:
        """Look up the plug-ins and load the tokenizer.

        Raises: PluginError, ConfigError where one of them cannot be had.
        """
        self.args = args
        self.client = client
        self.plugins = Plugins.resolve(args)
        self.tokenizer: PromptTokenizer | None = (
            load_tokenizer(args.hf_checkpoint) if args.hf_checkpoint is not None else None
        )
        self.semaphore = asyncio.Semaphore(args.sglang_server_concurrency)
        self.sampling_params: dict[str, Any] = args.sampling_params()
        self.pendings: dict[GroupTask, tuple[int, list[Sample]]] = {}
        self.aborted = False
        self.requests = RequestLog()
        self._running_rids: set[str] = set()

    @contextlib.contextmanager
    def running_request(self) -> Iterator[str]:
        """Yield the id of a new request, by which `abort` can end it until the block is left.

        Ids are 32 hexadecimal digits: SGLang aborts by prefix, and none of these is the prefix of another.
        """
        rid = uuid4().hex
        self._running_rids.add(rid)
        try:
            yield rid
        finally:
            self._running_rids.discard(rid)

    @property
    def running_rids(self) -> list[str]:
        """The ids of the requests that have no answer yet."""
        return sorted(self._running_rids)


_current: ContextVar[RolloutState] = ContextVar("espalier_rollout_state")


@contextlib.asynccontextmanager
async def rollout_state(args: RolloutConfig) -> AsyncIterator[RolloutState]:
    """Give the code in the block, and the tasks it starts, the state of the rollout that is running.

    Where none is, one is made for the block, with connections of its own.
    """
    state = _current.get(None)
    if state is not None:
        yield state
        return
    async with RouterClient(
        args.router_url,
        max_connections=args.sglang_server_concurrency,
        request_timeout_s=args.request_timeout_s,
        outages=Outages(patience_s=args.router_patience_s, tell=current_observer().on_notice),
    ) as client:
        state = RolloutState(args, client)
        token = _current.set(state)
        try:
            yield state
        finally:
            _current.reset(token)


def GenerateState(args: RolloutConfig) -> RolloutState:  # noqa: ARG001, N802  slime's name for a class
    """Return the state of the running rollout, as generate functions written for slime ask for it.

    Raises: RuntimeError outside of a rollout; `rollout_state` makes one.
    """
    state = _current.get(None)
    if state is None:
        raise RuntimeError("no rollout is running here: enter `async with rollout_state(args)` first")
    return state
