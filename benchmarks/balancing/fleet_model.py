"""A model of SGLang workers in virtual time: a prefix cache, prefill that stops decoding, batched decoding.

What it leaves out: chunked prefill, retraction (memory for the whole output is taken when a call is
admitted), and the growth of a decoding step with the length of what is attended to.
"""

import heapq
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .grpo_load import BLOCK_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpeed:
    """One worker's constants, of the order of an 8B model on one H100."""

    prefill_tokens_per_s: float = 8000.0
    decode_step_s: float = 0.006
    decode_step_per_call_s: float = 0.00035
    max_running: int = 256
    cache_tokens: int = 524_288
    """Room for keys and values, of running calls and of what is kept for later ones."""
    slowdown: float = 1.0

    def prefill_s(self, tokens: int) -> float:
        """Return how long it takes to read `tokens`."""
        return self.slowdown * tokens / self.prefill_tokens_per_s

    def step_s(self, running: int) -> float:
        """Return how long it takes to sample one token for each of the running calls."""
        return self.slowdown * (self.decode_step_s + self.decode_step_per_call_s * running)


class Timeline:
    """Virtual time: what is to happen happens in order; ties in the order they were planned in."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._numbers = itertools.count()
        self._planned: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, delay_s: float, happen: Callable[[], None]) -> None:
        """Plan something `delay_s` from now."""
        heapq.heappush(self._planned, (self.now_s + delay_s, next(self._numbers), happen))

    def run(self, watch: Callable[[float], None]) -> None:
        """Let everything happen; `watch` is told of the seconds that pass before each thing does."""
        while self._planned:
            at_s, _, happen = heapq.heappop(self._planned)
            watch(at_s - self.now_s)
            self.now_s = at_s
            happen()


class BlockCache:
    """Blocks in a worker's memory: pinned by running calls, or idle; the idle ones used longest ago go first.

    Invariant: pinned, reserved and idle blocks together are at most `capacity`. A sequence's blocks become
    idle from its end to its beginning, so that a beginning outlives what follows it.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._pins: Counter[int] = Counter()
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._reserved = 0

    def known_prefix(self, blocks: Sequence[int]) -> int:
        """Return how many of the first blocks are in memory."""
        return next(
            (at for at, block in enumerate(blocks) if block not in self._pins and block not in self._idle),
            len(blocks),
        )

    def admit(self, prompt: Sequence[int], output: Sequence[int]) -> int | None:
        """Pin a prompt and reserve room for its output; return how many blocks were known, None if full."""
        known = self.known_prefix(prompt)
        new_pins = sum(block not in self._pins for block in prompt)
        if len(self._pins) + self._reserved + new_pins + len(output) > self._capacity:
            return None
        self._reserved += len(output)
        for block in prompt:
            self._idle.pop(block, None)
            self._pins[block] += 1
        while len(self._pins) + self._reserved + len(self._idle) > self._capacity:
            self._idle.popitem(last=False)
        return known

    def release(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """End a call that was admitted: its prompt and output may be reused, or go when room is needed."""
        self._reserved -= len(output)
        for block in reversed(output):
            self._idle[block] = None
        for block in reversed(prompt):
            self._pins[block] -= 1
            if not self._pins[block]:
                del self._pins[block]
                self._idle[block] = None


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """A call at a worker."""

    prompt: Sequence[int]
    output: Sequence[int]
    arrived_s: float
    on_end: Callable[[], None]


@dataclass(slots=True, kw_only=True)
class Account:
    """What all workers together did."""

    prompt_blocks: int = 0
    known_blocks: int = 0
    waits_s: list[float] = field(default_factory=list)
    """From a call's arrival to the beginning of its prefill."""


class ModelWorker:
    """One worker; a policy's candidate."""

    def __init__(self, ordinal: int, speed: WorkerSpeed, timeline: Timeline, account: Account) -> None:
        self.url = f"http://worker-{ordinal}:30000"
        self.ordinal = ordinal
        self.in_flight = 0
        self._speed = speed
        self._timeline = timeline
        self._account = account
        self._cache = BlockCache(speed.cache_tokens // BLOCK_TOKENS)
        self._waiting: deque[Work] = deque()
        self._running: list[tuple[float, int, Work]] = []
        """By the decoding step at which they end."""
        self._numbers = itertools.count()
        self._steps = 0.0
        self._counted_at_s = 0.0
        self._is_reading = False
        self._plan = 0

    def submit(self, work: Work) -> None:
        """Take a call."""
        self.in_flight += 1
        self._count_steps()
        self._waiting.append(work)
        self._go_on()

    def _count_steps(self) -> None:
        now_s = self._timeline.now_s
        if self._running and not self._is_reading:
            self._steps += (now_s - self._counted_at_s) / self._speed.step_s(len(self._running))
        self._counted_at_s = now_s

    def _go_on(self) -> None:
        """Plan what comes next: a prompt to read goes before decoding, as in SGLang."""
        if self._is_reading:
            return
        self._plan += 1
        if self._waiting and len(self._running) < self._speed.max_running:
            work = self._waiting[0]
            known = self._cache.admit(work.prompt, work.output)
            if known is not None:
                self._waiting.popleft()
                self._read(work, known)
                return
            assert self._running, "the call does not fit into an empty worker"
        if self._running:
            left = max(0.0, self._running[0][0] - self._steps)
            plan = self._plan
            self._timeline.after(left * self._speed.step_s(len(self._running)), lambda: self._end_due(plan))

    def _read(self, work: Work, known: int) -> None:
        account = self._account
        account.prompt_blocks += len(work.prompt)
        account.known_blocks += known
        account.waits_s.append(self._timeline.now_s - work.arrived_s)
        self._is_reading = True
        # The last token is always read: its logits are what the first sample is drawn from.
        tokens = max(1, (len(work.prompt) - known) * BLOCK_TOKENS)
        self._timeline.after(self._speed.prefill_s(tokens), lambda: self._decode(work))

    def _decode(self, work: Work) -> None:
        self._count_steps()
        self._is_reading = False
        end_step = self._steps + len(work.output) * BLOCK_TOKENS
        heapq.heappush(self._running, (end_step, next(self._numbers), work))
        self._go_on()

    def _end_due(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._count_steps()
        due_step = self._running[0][0]
        self._steps = max(self._steps, due_step)
        ended = []
        while self._running and self._running[0][0] <= due_step:
            ended.append(heapq.heappop(self._running)[2])
        for work in ended:
            self._cache.release(work.prompt, work.output)
            self.in_flight -= 1
        self._go_on()
        for work in ended:
            work.on_end()
