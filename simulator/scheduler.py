"""Which generations run, which wait, and what pausing, aborting and new weights do to them.

Theory of operation. A generation is HELD (while paused, or while an update of the weights waits for the
others to end), then WAITING, then RUNNING. One task moves time on in slices: it asks the latency model how
many decoding steps have passed, advances every running generation by that many tokens, and admits what waits.
Without latency nothing is ever left running: a generation is at its end when `submit` returns, and there is
no task.

All methods are called from one event loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .generation import Generation, Stage
from .latency import LatencyModel
from .params import ValueProblem
from .prefix_cache import PrefixCache

QUEUE_FULL = "The request queue is full."

MAX_LATE_S = 0.2
"""Decoding that is made up for when the clock is looked at late. A process that was stopped for longer has
decoded nothing meanwhile."""


class PauseMode(StrEnum):
    """What a pause does to generations that run: end them, put them back into the queue, or leave them."""

    ABORT = "abort"
    RETRACT = "retract"
    IN_PLACE = "in_place"


@dataclass(frozen=True, slots=True)
class Load:
    """What the scheduler holds."""

    running: int
    waiting: int
    used_tokens: int
    waiting_tokens: int


class Scheduler:
    """Runs generations. `on_end` is called once for each, when it has ended."""

    def __init__(
        self,
        *,
        latency: LatencyModel,
        cache: PrefixCache,
        slice_s: float,
        max_running: int,
        max_queued: int | None,
        on_end: Callable[[Generation], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._latency = latency
        self._cache = cache
        self._slice_s = slice_s
        self._max_running = max_running
        self._max_queued = max_queued
        self._on_end = on_end
        self._clock = clock
        self._by_rid: dict[str, Generation] = {}
        self._held: deque[Generation] = deque()
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._pause: PauseMode | None = None
        self._load_at_pause: Load | None = None
        self._updates = 0
        self._task: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._signs_of_life: list[asyncio.Future[None]] = []
        self._credit_s = 0.0
        self._looked_at = 0.0
        self._prefill_free_at = 0.0

    @property
    def is_paused(self) -> bool:
        """New generations are held until `resume`."""
        return self._pause is not None

    @property
    def is_idle(self) -> bool:
        """Nothing is held, waits or runs."""
        return not self._by_rid

    @property
    def is_busy(self) -> bool:
        """Something runs or waits, so the cache cannot be flushed; retracted generations do not count."""
        return bool(self._running or (self._waiting and self._pause is not PauseMode.RETRACT))

    def load(self) -> Load:
        """Return the load; while paused, as it was when the pause began."""
        return self._load_at_pause or self._current_load()

    def submit(self, generations: Sequence[Generation]) -> None:
        """Take the generations of one call.

        One that does not fit into the queue ends at once, refused. Raises: ValueProblem where one of them has
        the rid of a generation that is not at its end; then none is taken.
        """
        for generation in generations:
            if generation.rid in self._by_rid:
                raise ValueProblem(f"Duplicate request ID detected: {generation.rid}")
        for generation in generations:
            self._by_rid[generation.rid] = generation
        if self._pause or self._updates:
            for generation in generations:
                generation.stage = Stage.HELD
            self._held.extend(generations)
            return
        for generation in generations:
            self._enqueue(generation)
        self._move_on()

    def abort(self, rid: str) -> None:
        """End `rid`, if there is such a generation, and every other one whose rid begins with it."""
        if rid in self._by_rid:
            self._end([each for key, each in self._by_rid.items() if key.startswith(rid)])

    def abort_generation(self, generation: Generation) -> None:
        """End this one only."""
        if self._by_rid.get(generation.rid) is generation:
            self._end([generation])

    def abort_all(self) -> None:
        """End everything that is held, waits or runs."""
        self._end(list(self._by_rid.values()))

    def pause(self, mode: PauseMode) -> None:
        """Stop sampling and hold new generations."""
        self._pause = mode
        self._load_at_pause = None
        if mode is PauseMode.ABORT:
            self._end([*self._running, *self._waiting])
        self._load_at_pause = self._current_load()
        if mode is PauseMode.RETRACT:
            for generation in reversed(self._running):
                generation.stage = Stage.WAITING
                generation.retractions += 1
                self._waiting.appendleft(generation)
            self._running.clear()

    def resume(self) -> None:
        """Sample on and let in what was held. Harmless without a pause."""
        self._pause = None
        self._load_at_pause = None
        self._looked_at = self._clock()
        self._show_life()
        self._release()

    async def change_weights(self, weight_version: str) -> None:
        """Sample from the weights `weight_version` from now on.

        While paused, generations go on from the new weights later; otherwise those that have begun end first,
        with the weights they began with, and new ones are held meanwhile.
        """
        self._updates += 1
        try:
            while not self._pause and (self._running or self._waiting):
                self._idle.clear()
                await self._idle.wait()
            self.rename_weights(weight_version)
        finally:
            self._updates -= 1
            self._release()

    def rename_weights(self, weight_version: str) -> None:
        """Sample from the weights `weight_version` from the next token on, running generations included."""
        for generation in self._by_rid.values():
            generation.change_weights(weight_version)
        self._show_life()

    def flush_cache(self) -> bool:
        """Forget what is cached; return False where generations run or wait."""
        self._show_life()
        if self.is_busy:
            return False
        self._cache.clear()
        return True

    async def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs or waits; return False where that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.is_busy:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def sign_of_life(self, timeout_s: float) -> bool:
        """Wait until a token is sampled or a command answered; return False where that takes too long."""
        sign: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._signs_of_life.append(sign)
        try:
            async with asyncio.timeout(timeout_s):
                await sign
        except TimeoutError:
            return False
        finally:
            self._signs_of_life.remove(sign)
        return True

    def _current_load(self) -> Load:
        return Load(
            running=len(self._running),
            waiting=len(self._waiting),
            used_tokens=sum(len(each.prompt_ids) + len(each.output_ids) for each in self._running),
            waiting_tokens=sum(len(each.prompt_ids) for each in self._waiting),
        )

    def _enqueue(self, generation: Generation) -> None:
        is_full = len(self._running) >= self._max_running or bool(self._waiting)
        if self._max_queued is not None and is_full and len(self._waiting) >= self._max_queued:
            generation.refuse(503, QUEUE_FULL)
            self._forget(generation)
            return
        generation.stage = Stage.WAITING
        self._waiting.append(generation)
        self._admit()

    def _release(self) -> None:
        if self._pause or self._updates:
            return
        while self._held:
            self._enqueue(self._held.popleft())
        self._admit()
        self._move_on()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_running:
            generation = self._waiting.popleft()
            generation.stage = Stage.RUNNING
            known = 0 if generation.reads_whole_prompt else self._cache.longest_prefix(generation.prompt_ids)
            generation.cached_tokens = min(known, len(generation.prompt_ids) - 1)
            self._cache.add(generation.prompt_ids)
            uncached = len(generation.prompt_ids) - generation.cached_tokens
            start = max(self._clock(), self._prefill_free_at)
            generation.ready_at = self._prefill_free_at = start + self._latency.prefill_s(uncached)
            self._running.append(generation)

    def _move_on(self) -> None:
        """Advance what can be advanced at once; leave the rest to the task."""
        if not self._running:
            return
        if self._task is None:
            self._looked_at, self._credit_s = self._clock(), 0.0
        self._advance()
        if self._running and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._tick(), name="simulated scheduler")

    async def _tick(self) -> None:
        try:
            while self._running and not self._pause:
                await asyncio.sleep(self._slice_s)
                if not self._pause:
                    self._advance()
        finally:
            self._task = None

    def _advance(self) -> None:
        while True:
            now = self._clock()
            limit = self._steps(now)
            ready = [each for each in self._running if each.ready_at <= now]
            if limit != 0:
                for generation in ready:
                    generation.advance(limit)
            if ready:
                self._show_life()
            ended = [each for each in ready if each.is_finished]
            if not ended:
                return
            self._running = [each for each in self._running if not each.is_finished]
            for generation in ended:
                self._cache.add([*generation.prompt_ids, *generation.output_ids])
                self._forget(generation)
            self._admit()
            self._note_idle()
            if not self._latency.decodes_at_once:
                return

    def _steps(self, now: float) -> int | None:
        """Return how many tokens each generation has sampled since the last look; None: to its end."""
        if self._latency.decodes_at_once:
            return None
        elapsed = self._credit_s + min(now - self._looked_at, MAX_LATE_S)
        steps, self._credit_s = self._latency.steps(elapsed, len(self._running))
        self._looked_at = now
        return steps

    def _end(self, generations: Sequence[Generation]) -> None:
        for generation in generations:
            generation.abort()
        for queue in (self._held, self._waiting):
            remaining = [each for each in queue if not each.is_finished]
            queue.clear()
            queue.extend(remaining)
        self._running = [each for each in self._running if not each.is_finished]
        for generation in generations:
            self._forget(generation)
        if not self._pause:
            self._admit()
            self._move_on()
        self._note_idle()

    def _forget(self, generation: Generation) -> None:
        generation.stage = Stage.FINISHED
        if self._by_rid.pop(generation.rid, None) is not None:
            self._on_end(generation)

    def _note_idle(self) -> None:
        if not self.is_busy:
            self._idle.set()

    def _show_life(self) -> None:
        for sign in self._signs_of_life:
            if not sign.done():
                sign.set_result(None)
