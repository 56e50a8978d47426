"""The endpoint `/generate`: whole replies, streams, and clients that leave."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from .asgi import SSE_DONE, SSE_TYPE, Reply, Request, json_reply, sse_event
from .bodies import read_body
from .error_replies import INTERNAL, contract_error, status_error, stream_error, value_error
from .generation import Generation
from .params import ContractError, ValueProblem
from .requests import GenerateRequest, UnhandledError, check_form, read_request
from .scheduler import QUEUE_FULL
from .worker import Worker


class Teller:
    """Tells a stream what is new of one generation, an event for each full interval and one for the end."""

    def __init__(self, generation: Generation, *, interval: int, incremental: bool, with_text: bool) -> None:
        self.is_done = False
        self._generation = generation
        self._interval = interval
        self._incremental = incremental
        self._with_text = with_text
        self._told = 0
        self._is_first = True

    def news(self) -> Iterator[dict[str, Any]]:
        """Yield what has not been told yet."""
        generation = self._generation
        while not self.is_done:
            sampled = len(generation.output_ids)
            stop = self._told + self._interval
            if stop > sampled:
                if not generation.is_finished:
                    return
                stop = sampled
            self.is_done = generation.is_finished and stop == sampled
            start = self._told if self._incremental else 0
            yield generation.view(start, stop, with_text=self._with_text, is_first=self._is_first)
            self._told, self._is_first = stop, False


class GenerateEndpoint:
    """Answers `/generate`."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._with_text = not worker.settings.skip_tokenizer_init

    async def __call__(self, request: Request, *, refuse: bool = False) -> Reply | None:
        """Return the reply, or None where the client has left. `refuse`: as if the queue were full.

        Raises: WorkerDied, FormError.
        """
        received_at = self._worker.clock()
        try:
            body = check_form(await read_body(request))
        except ContractError as error:
            return contract_error(str(error))
        news = asyncio.Event()
        try:
            call, generations = self._accept(body, news, refuse=refuse)
        except ValueProblem as error:
            if body.get("stream"):
                return _sse(_once(stream_error(str(error))))
            return value_error(str(error))
        except UnhandledError:
            return INTERNAL
        if call.stream:
            return _sse(self._events(request, call, generations, news))
        if not await self._wait(request, generations, news, received_at):
            return None
        for generation in generations:
            reason = generation.finish_reason or {}
            if reason.get("status_code"):
                return status_error(reason["status_code"], reason["message"])
        views = [
            each.view(0, len(each.output_ids), with_text=self._with_text, is_first=True)
            for each in generations
        ]
        return json_reply(views if call.many else views[0])

    def _accept(
        self, body: dict[str, Any], news: asyncio.Event, *, refuse: bool
    ) -> tuple[GenerateRequest, list[Generation]]:
        worker = self._worker
        call = read_request(
            body, vocabulary=worker.tokenizer.size, skip_tokenizer=worker.settings.skip_tokenizer_init
        )
        generations = worker.generations(call, news)
        for prompt in call.prompts:
            worker.counters.receive(prompt.rid)
        if refuse:
            for generation in generations:
                generation.refuse(503, QUEUE_FULL)
                worker.counters.end(generation.rid, aborted=True)
        else:
            worker.scheduler.submit(generations)
        return call, generations

    async def _wait(
        self, request: Request, generations: Sequence[Generation], news: asyncio.Event, received_at: float
    ) -> bool:
        """Wait for the end of all; return False where the client left first.

        A client that has left is noticed at the next look, as often as `disconnect_poll_s` says.
        """
        if all(each.is_finished for each in generations):
            return True
        poll_s = self._worker.settings.disconnect_poll_s
        gone = asyncio.create_task(request.left())
        gone.add_done_callback(lambda _: news.set())
        look_at: float | None = None
        try:
            while not all(each.is_finished for each in generations):
                now = self._worker.clock()
                if gone.done():
                    if look_at is None:
                        look_at = now + poll_s - (now - received_at) % poll_s
                    if now >= look_at:
                        break
                news.clear()
                try:
                    async with asyncio.timeout(None if look_at is None else look_at - now):
                        await news.wait()
                except TimeoutError:
                    pass
            return not gone.done()
        finally:
            self._leave(generations, has_left=gone.done())
            gone.cancel()

    async def _events(
        self, request: Request, call: GenerateRequest, generations: Sequence[Generation], news: asyncio.Event
    ) -> AsyncGenerator[bytes, None]:
        settings = self._worker.settings
        tellers = [
            Teller(
                generation,
                interval=generation.stream_interval or settings.stream_interval,
                incremental=settings.incremental_streaming_output,
                with_text=self._with_text,
            )
            for generation in generations
        ]
        gone = asyncio.create_task(request.left())
        gone.add_done_callback(lambda _: news.set())
        try:
            while not gone.done():
                news.clear()
                for index, teller in enumerate(tellers):
                    for view in teller.news():
                        yield sse_event({**view, "index": index} if call.many else view)
                if all(teller.is_done for teller in tellers):
                    break
                await news.wait()
            yield SSE_DONE
        finally:
            self._leave(generations, has_left=gone.done())
            gone.cancel()

    def _leave(self, generations: Sequence[Generation], *, has_left: bool) -> None:
        """End what is not at its end, and count the clients that have left."""
        for generation in generations:
            if has_left:
                self._worker.counters.disconnect(generation.rid)
            if not generation.is_finished:
                self._worker.scheduler.abort_generation(generation)


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _sse(stream: AsyncGenerator[bytes, None]) -> Reply:
    return Reply(headers=[(b"content-type", SSE_TYPE)], stream=stream)
