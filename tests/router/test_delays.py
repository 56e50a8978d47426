import asyncio

from espalier.router.delays import DelayQueue


def test_items_expire_in_order_and_discarded_ones_do_not() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        expired: list[str] = []
        done = asyncio.Event()

        def expire(item: str) -> None:
            expired.append(item)
            if item == "last":
                done.set()

        queue = DelayQueue(0.01, expire)
        queue.add("first", loop)
        queue.add("second", loop)
        queue.discard("first")
        queue.discard("unknown")
        await asyncio.sleep(0)
        queue.add("last", loop)
        await asyncio.wait_for(done.wait(), 5)
        assert expired == ["second", "last"]
        queue.add("last", loop)
        done.clear()
        await asyncio.wait_for(done.wait(), 5)
        assert expired == ["second", "last", "last"]

    asyncio.run(test())


def test_nothing_expires_early() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        when: asyncio.Future[float] = loop.create_future()
        began_s = loop.time()
        queue: DelayQueue[str] = DelayQueue(0.05, lambda _: when.set_result(loop.time()))
        queue.add("item", loop)
        assert await asyncio.wait_for(when, 5) - began_s >= 0.05

    asyncio.run(test())
