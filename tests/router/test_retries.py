"""How long calls wait before they are sent again, and how often in all."""

import pytest

from espalier.calls import Reply
from espalier.router.retries import Backoff, RetryBudget, is_queue_full


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_backoff_grows_to_its_limit() -> None:
    backoff = Backoff(initial_s=0.1, multiplier=2, max_s=0.5, jitter=0)
    assert [backoff.delay_s(number) for number in (1, 2, 3, 4, 1000)] == [0.1, 0.2, 0.4, 0.5, 0.5]


@pytest.mark.parametrize(("chance", "delay_s"), [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)])
def test_chance_adds_or_takes_a_share_of_the_backoff(chance: float, delay_s: float) -> None:
    backoff = Backoff(initial_s=1.0, jitter=0.2)
    assert backoff.delay_s(1, lambda: chance) == pytest.approx(delay_s)


def test_budget_is_spent_and_earned_again_by_calls_and_by_time() -> None:
    clock = Clock()
    budget = RetryBudget(capacity=2, per_call=0.5, per_s=1, clock=clock)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    budget.count_call()
    assert not budget.take()
    budget.count_call()
    assert [budget.take() for _ in range(2)] == [True, False]
    clock.now_s += 1.0
    assert [budget.take() for _ in range(2)] == [True, False]
    clock.now_s += 1000.0
    assert [budget.take() for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("status", "body", "is_full"),
    [
        (503, b'{"object":"error","message":"The request queue is full.","code":503}', True),
        (503, b'{"object":"error","message":"Request running timeout reached.","code":503}', False),
        (200, b"The request queue is full.", False),
    ],
)
def test_only_a_full_queue_means_that_nothing_was_begun(status: int, body: bytes, is_full: bool) -> None:
    assert is_queue_full(Reply(status=status, headers=[], body=body)) is is_full
