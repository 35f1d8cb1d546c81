"""The same kind of work done for many orders, by hands that each make ready once: in this process, or in actors on Ray.

``do`` gives results in the order of the orders, whoever did which; who takes them from ``each`` must not let anything hang on theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from wegeft.contracts.errors import WegeftError, WorkerLost
from workers.pool import RayPool

Order = TypeVar("Order")
Order_contra = TypeVar("Order_contra", contravariant=True)
Result = TypeVar("Result")
Done = Callable[[int], None]
"""Takes how many orders are done."""

_IN_HAND = 2
"""Orders that an actor has at once: the one that it does, and the next, so that it need not wait for it."""


def ignore(_count: int) -> None:
    """Tell nobody."""


class Crew(Protocol[Order_contra, Result]):
    """Does orders; it is closed when it is not needed any more."""

    def each(self, orders: Sequence[Order_contra]) -> Iterator[tuple[int, Result]]:
        """Yield the number of each order and what came of it, in any order, as soon as it is there."""
        ...

    def do(self, orders: Sequence[Order_contra], done: Done = ignore) -> list[Result]:
        """Return what came of each order, in their order."""
        ...

    def close(self) -> None:
        """End whatever was started."""
        ...


@dataclass
class InlineCrew(Generic[Order, Result]):
    """One hand, in this process and thread."""

    prepare: Callable[[], Callable[[Order], Result]]
    """Makes a hand ready; called once, before the first order."""
    _hand: Callable[[Order], Result] | None = field(default=None, init=False)

    def each(self, orders: Sequence[Order]) -> Iterator[tuple[int, Result]]:
        """See :class:`Crew`; raises whatever a hand raises."""
        for index, order in enumerate(orders):
            if self._hand is None:
                self._hand = self.prepare()
            yield index, self._hand(order)

    def do(self, orders: Sequence[Order], done: Done = ignore) -> list[Result]:
        """See :class:`Crew`; raises whatever a hand raises."""
        return _in_order(self.each(orders), done)

    def close(self) -> None:
        """Forget the hand."""
        self._hand = None


class _Hand:
    """A hand in a process of its own on a Ray node."""

    def __init__(self, prepare: Callable[[], Callable[[Any], Any]], common: str | None) -> None:
        self._hand, self._common = prepare(), common

    def do(self, order: Any, value: Any = None) -> Any:
        return self._hand(order if self._common is None else replace(order, **{self._common: value}))


class RayCrew(Generic[Order, Result]):
    """Hands in actors of one core each, on a Ray of this process's own, which ends when the crew is closed."""

    def __init__(self, prepare: Callable[[], Callable[[Order], Result]], hands: int, folder: Path, common: str | None = None) -> None:
        """``folder``: where Ray keeps its token and its files; ``hands`` are at most the cores that there are.

        ``common``: a field of bytes of every order, which are dataclasses then; what several orders have of it travels once.
        """
        self._common = common
        self._pool = RayPool(address=None, folder=folder)
        self._pool.connect()
        import ray

        make = ray.remote(_Hand).options(num_cpus=1, max_restarts=0, max_task_retries=0)
        shared = ray.put(prepare)
        self._hands = [make.remote(shared, common) for _ in range(hands)]

    def each(self, orders: Sequence[Order]) -> Iterator[tuple[int, Result]]:
        """See :class:`Crew`; raises :class:`WorkerLost` where an actor ended."""
        import ray

        waiting, running = list(self._parcels(orders)), dict[Any, tuple[int, Any]]()
        waiting.reverse()
        free = self._hands * _IN_HAND
        while waiting or running:
            while free and waiting:
                index, parcel = waiting.pop()
                hand = free.pop(0)
                running[hand.do.remote(*parcel)] = (index, hand)
            ready, _ = ray.wait(list(running), num_returns=1)
            index, hand = running.pop(ready[0])
            free.append(hand)
            yield index, _result_of(ready[0])

    def do(self, orders: Sequence[Order], done: Done = ignore) -> list[Result]:
        """See :class:`Crew`; raises :class:`WorkerLost` where an actor ended."""
        return _in_order(self.each(orders), done)

    def _parcels(self, orders: Sequence[Any]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield the number of each order and what is sent of it."""
        import ray

        stored: dict[int, Any] = {}
        for index, order in enumerate(orders):
            if self._common is None:
                yield index, (order,)
                continue
            value = getattr(order, self._common)
            if id(value) not in stored:
                stored[id(value)] = ray.put(value)
            yield index, (replace(order, **{self._common: b""}), stored[id(value)])

    def close(self) -> None:
        """End the actors and Ray."""
        import ray

        for hand in self._hands:
            ray.kill(hand, no_restart=True)
        self._hands = []
        self._pool.close()


def _in_order(results: Iterator[tuple[int, Result]], done: Done) -> list[Result]:
    found: dict[int, Result] = {}
    for index, result in results:
        found[index] = result
        done(len(found))
    return [found[index] for index in sorted(found)]


def _result_of(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WegeftError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise WorkerLost(f"an actor ended without a word ({type(error).__name__})", hint="fewer --actors need less memory") from error
