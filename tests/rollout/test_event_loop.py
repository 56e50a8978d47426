import gc
import threading

import pytest

from espalier.rollout.event_loop import COLLECT_EVERY, collecting_rarely, run_async


def test_a_result_is_handed_over_without_being_put_into_words() -> None:
    described = []

    class Result:
        def __repr__(self) -> str:
            described.append(self)
            return "millions of tokens"

    result = Result()

    async def produce() -> Result:
        return result

    assert run_async(produce()) is result
    assert not described


def test_what_a_coroutine_raises_is_raised() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        run_async(fail())


def test_garbage_is_looked_for_rarely_until_the_last_rollout_has_ended() -> None:
    before = gc.get_threshold()
    assert before != COLLECT_EVERY
    others_turn, first_left = threading.Event(), threading.Event()

    def overlap() -> None:
        with collecting_rarely():
            others_turn.set()
            first_left.wait(timeout=20)

    thread = threading.Thread(target=overlap)
    with collecting_rarely():
        thread.start()
        assert others_turn.wait(timeout=20)
    assert gc.get_threshold() == COLLECT_EVERY
    first_left.set()
    thread.join(timeout=20)
    assert gc.get_threshold() == before
