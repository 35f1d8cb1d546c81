"""The same kind of work done for many orders, by hands that each make ready once: in this process, or in actors on Ray.

Results come in the order of the orders, whoever did which, so that nothing that follows from them hangs on the number of hands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from wegeft.contracts.errors import WegeftError, WorkerLost
from workers.pool import RayPool

Order = TypeVar("Order")
Order_contra = TypeVar("Order_contra", contravariant=True)
Result = TypeVar("Result")
Done = Callable[[int], None]
"""Takes how many orders are done."""


def ignore(_count: int) -> None:
    """Tell nobody."""


class Crew(Protocol[Order_contra, Result]):
    """Does orders; it is closed when it is not needed any more."""

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

    def do(self, orders: Sequence[Order], done: Done = ignore) -> list[Result]:
        """See :class:`Crew`; raises whatever a hand raises."""
        if self._hand is None:
            self._hand = self.prepare()
        results = []
        for count, order in enumerate(orders, start=1):
            results.append(self._hand(order))
            done(count)
        return results

    def close(self) -> None:
        """Forget the hand."""
        self._hand = None


class _Hand:
    """A hand in a process of its own on a Ray node."""

    def __init__(self, prepare: Callable[[], Callable[[Any], Any]]) -> None:
        self._hand = prepare()

    def do(self, order: Any) -> Any:
        return self._hand(order)


class RayCrew(Generic[Order, Result]):
    """Hands in actors of one core each, on a Ray of this process's own, which ends when the crew is closed."""

    def __init__(self, prepare: Callable[[], Callable[[Order], Result]], hands: int, folder: Path) -> None:
        """``folder``: where Ray keeps its token and its files; ``hands`` are at most the cores that there are."""
        self._pool = RayPool(address=None, folder=folder)
        self._pool.connect()
        import ray

        make = ray.remote(_Hand).options(num_cpus=1, max_restarts=0, max_task_retries=0)
        shared = ray.put(prepare)
        self._hands = [make.remote(shared) for _ in range(hands)]

    def do(self, orders: Sequence[Order], done: Done = ignore) -> list[Result]:
        """See :class:`Crew`; raises :class:`WorkerLost` where an actor ended."""
        import ray

        results: dict[int, Result] = {}
        free, waiting, running = list(self._hands), list(enumerate(orders)), dict[Any, tuple[int, Any]]()
        waiting.reverse()
        while waiting or running:
            while free and waiting:
                index, order = waiting.pop()
                hand = free.pop()
                running[hand.do.remote(order)] = (index, hand)
            ready, _ = ray.wait(list(running), num_returns=1)
            index, hand = running.pop(ready[0])
            results[index] = _result_of(ready[0])
            free.append(hand)
            done(len(results))
        return [results[index] for index in range(len(orders))]

    def close(self) -> None:
        """End the actors and Ray."""
        import ray

        for hand in self._hands:
            ray.kill(hand, no_restart=True)
        self._hands = []
        self._pool.close()


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
