"""A bell is heard by everyone who waits, in any event loop, and nothing is missed between looking and waiting."""

import asyncio
import threading
import time

from orchestrator.bells import Bell


async def wait(bell: Bell, heard: int, seconds: float) -> float:
    started = time.monotonic()
    await bell.wait(heard, seconds)
    return time.monotonic() - started


def test_all_who_wait_hear_it() -> None:
    bell, waited = Bell(), list[float]()

    def loop() -> None:
        async def several() -> list[float]:
            return list(await asyncio.gather(*(wait(bell, bell.count, 20) for _ in range(3))))

        waited.extend(asyncio.run(several()))

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    bell.ring()
    for thread in threads:
        thread.join(30)
    assert len(waited) == 6
    assert max(waited) < 10


def test_what_rang_before_the_wait_is_heard_too() -> None:
    bell = Bell()
    looked = bell.count
    bell.ring()
    assert asyncio.run(wait(bell, looked, 20)) < 10


def test_silence_ends_and_leaves_nothing_behind() -> None:
    bell = Bell()
    assert asyncio.run(wait(bell, bell.count, 0.05)) >= 0.05
    bell.ring()  # the loop of the one who waited has closed
    assert bell.count == 1
