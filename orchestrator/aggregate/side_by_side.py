"""Work on members or on generators in several threads: numpy multiplies and decomposes without the interpreter's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield ``work`` of each item in their order, done by so many ``threads``; with one, in the caller's and only when it is asked for.

    No more than ``threads`` items are begun beyond the one that is taken, so that memory does not grow with their number. What the context
    says, numpy's error state for one, holds in every thread. Raises what ``work`` raises.
    """
    if threads == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[Result]] = deque()
        for item in items:
            begun.append(pool.submit(copy_context().run, work, item))
            if len(begun) > threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
