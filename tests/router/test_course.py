"""Calls without tasks: when they go on, what they write, and how they become tasks."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from espalier.router.course import Course, Promise, Turn, in_a_task, promise, write
from tests.router.running import run


class Noting(asyncio.Transport):
    """Notes what is written in `steps`."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self.steps = steps
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.steps.append(f"wrote {bytes(data).decode()}")

    def is_closing(self) -> bool:
        return self.is_closed


class Track:
    """A turn, the courses in it, and those that have ended."""

    def __init__(self) -> None:
        self.turn = Turn()
        self.ended: list[Course] = []
        self.failures: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: self.failures.append(context["exception"])
        )

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> Course:
        return Course(coroutine, self.turn, asyncio.get_running_loop(), self.ended.append)


def made_promise() -> Promise[int]:
    made: Promise[int] | asyncio.Future[int] = promise(asyncio.get_running_loop())
    assert isinstance(made, Promise)
    return made


async def a_turn() -> None:
    await asyncio.sleep(0)


def test_courses_of_a_turn_run_in_a_row_and_what_they_write_leaves_afterwards() -> None:
    async def test() -> None:
        steps: list[str] = []
        promises: list[Promise[int]] = []

        async def call(name: str) -> None:
            promises.append(made_promise())
            steps.append(f"{name} got {await promises[-1]}")
            write(Noting(steps), name.encode())

        track = Track()
        courses = [track.begin(call("a")), track.begin(call("b"))]
        await a_turn()
        for number, each in enumerate(promises):
            each.set_result(number)
        assert steps == []
        await a_turn()
        assert steps == ["a got 0", "b got 1", "wrote a", "wrote b"]
        assert track.ended == courses

    run(test())


def test_nothing_is_written_to_a_connection_that_has_closed_in_the_same_turn() -> None:
    async def test() -> None:
        steps: list[str] = []
        gone, there = Noting(steps), Noting(steps)

        async def call() -> None:
            write(gone, b"lost")
            write(there, b"told")
            gone.is_closed = True

        Track().begin(call())
        await a_turn()
        assert steps == ["wrote told"]

    run(test())


def test_error_of_a_promise_is_raised_where_it_is_awaited() -> None:
    async def test() -> None:
        caught: list[str] = []
        promises: list[Promise[int]] = []

        async def call() -> None:
            promises.append(made_promise())
            try:
                await promises[0]
            except ValueError as error:
                caught.append(str(error))

        Track().begin(call())
        await a_turn()
        promises[0].set_exception(ValueError("broken"))
        await a_turn()
        assert caught == ["broken"]

    run(test())


def test_course_goes_on_as_a_task_where_it_asks_for_one() -> None:
    async def test() -> None:
        tasks: list[asyncio.Task[Any] | None] = []
        steps: list[str] = []

        async def call() -> None:
            await in_a_task()
            tasks.append(asyncio.current_task())
            assert isinstance(promise(asyncio.get_running_loop()), asyncio.Future)
            write(Noting(steps), b"now")
            assert steps == ["wrote now"]
            async with asyncio.timeout(60):
                await asyncio.Event().wait()

        track = Track()
        course = track.begin(call())
        await a_turn()
        await a_turn()
        (task,) = tasks
        assert task is not None
        assert track.ended == []
        course.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), track.ended) == (True, [course])

    run(test())


def test_course_is_cancelled_where_it_waits_and_its_promise_comes_too_late() -> None:
    async def test() -> None:
        promises: list[Promise[int]] = []
        steps: list[str] = []

        async def call() -> None:
            promises.append(made_promise())
            try:
                await promises[0]
            except asyncio.CancelledError:
                steps.append("cancelled")
                raise

        track = Track()
        courses = [track.begin(call())]
        await a_turn()
        courses[0].cancel()
        courses[0].cancel()
        assert promises[0].done()
        await a_turn()
        assert (steps, track.ended, track.failures) == (["cancelled"], courses, [])

    run(test())


def test_cancelling_wins_over_a_result_of_the_same_turn_as_it_does_with_tasks() -> None:
    async def test() -> None:
        promises: list[Promise[int]] = []
        got: list[int] = []

        async def call() -> None:
            promises.append(made_promise())
            got.append(await promises[0])

        track = Track()
        course = track.begin(call())
        await a_turn()
        promises[0].set_result(1)
        course.cancel()
        await a_turn()
        assert (got, track.ended) == ([], [course])
        course.cancel()
        await a_turn()
        assert track.ended == [course]

    run(test())


def test_error_that_nobody_catches_is_told_and_stops_no_other_course() -> None:
    async def test() -> None:
        done: list[str] = []

        async def fail() -> None:
            raise RuntimeError("a bug")

        async def succeed() -> None:
            done.append("other")

        track = Track()
        track.begin(fail())
        track.begin(succeed())
        await a_turn()
        assert [str(error) for error in track.failures] == ["a bug"]
        assert (done, len(track.ended)) == (["other"], 2)

    run(test())


def test_waiting_for_a_future_without_a_task_is_an_error_that_says_so() -> None:
    async def test() -> None:
        track = Track()

        async def call() -> None:
            await asyncio.get_running_loop().create_future()

        track.begin(call())
        await a_turn()
        (error,) = track.failures
        assert "without a task" in str(error)

    run(test())
