"""How long a worker takes: prompt tokens a second, and decoding steps that give each request one token."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyModel:
    """Times in seconds; 0 means at once."""

    prefill_tokens_per_s: float
    decode_step_s: float
    decode_step_per_request_s: float

    @property
    def decodes_at_once(self) -> bool:
        """A generation whose prompt is read is also at its end."""
        return self.decode_step_s == 0 and self.decode_step_per_request_s == 0

    def prefill_s(self, uncached_tokens: int) -> float:
        """Return how long it takes to read a prompt."""
        return uncached_tokens / self.prefill_tokens_per_s if self.prefill_tokens_per_s else 0.0

    def steps(self, elapsed_s: float, running: int) -> tuple[int, float]:
        """Return how many decoding steps fit into `elapsed_s` with `running` requests, and the rest in s."""
        step_s = self.decode_step_s + self.decode_step_per_request_s * running
        count = int(elapsed_s / step_s)
        return count, elapsed_s - count * step_s
