"""Applications that one test lends the next: to build one takes half a second, for FastAPI makes validators of its every route.

What belongs to a test (its database, its bytes, its clock, its bells) stands behind a :class:`StandIn`, which an application reads at each
request and never while it is built. Everything else that services say is the same for all who borrow: an application is lent only for
services that are equal but for those parts, and to one borrower at a time.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from hub.services import HubServices
from orchestrator.services import OrchestratorServices

_A_TESTS_OWN = ("engine", "store", "clock", "bells", "recent")
_MOST_FREE = 8
"""Applications that wait for a borrower; of rare services none is kept for long."""

Services = HubServices | OrchestratorServices


class StandIn:
    """Stands for a part of whoever has the application now, and for nothing where nobody has it."""

    __slots__ = ("_part",)

    def __init__(self) -> None:
        self.take_the_place_of(None)

    def take_the_place_of(self, part: Any) -> None:
        """Stand for ``part`` from now on; no part has a method of this name."""
        object.__setattr__(self, "_part", part)

    def __setattr__(self, name: str, value: Any) -> None:
        # What is set belongs to the part: nothing of it goes on to the next borrower.
        setattr(self._part, name, value)

    @property  # type: ignore[misc]  # what `isinstance` asks for
    def __class__(self) -> type:
        return type(self._part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._part(*arguments, **named)


class LentApp:
    """An application as one borrower has it; free for the next one when nobody holds it any more."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        await self._app(scope, receive, send)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)


@dataclass(eq=False)
class _Built:
    """An application, what it was built by and of, and the parts that stand in."""

    app: FastAPI
    assemble: Callable[..., FastAPI]
    shapes: tuple[Services, ...]
    parts: dict[tuple[int, str], StandIn] = field(default_factory=dict)

    def fill(self, services: tuple[Services, ...] | None) -> None:
        """Put a borrower's parts in, or take them out."""
        for (index, name), stand_in in self.parts.items():
            stand_in.take_the_place_of(None if services is None else getattr(services[index], name))


_free: list[_Built] = []
_lent: list[_Built] = []


def lend(assemble: Callable[..., FastAPI], *services: Services) -> LentApp:
    """Return the application that ``assemble`` makes of ``services``: one that was built before, where it is free.

    ``assemble`` is a function of a module, so that it can be told from others, and takes everything from the services that it gets.
    """
    shapes = tuple(_without_parts(one) for one in services)
    built = _find_free(assemble, shapes) or _build(assemble, services, shapes)
    built.fill(services)
    _lent.append(built)
    lent = LentApp(built.app)
    weakref.finalize(lent, _take_back, built)
    return lent


def _without_parts(services: Services) -> Services:
    return replace(services, **dict.fromkeys(_parts_of(services)))  # type: ignore[arg-type]


def _parts_of(services: Services) -> list[str]:
    return [one.name for one in fields(services) if one.name in _A_TESTS_OWN]


def _find_free(assemble: Callable[..., FastAPI], shapes: tuple[Services, ...]) -> _Built | None:
    def fits(built: _Built) -> bool:
        return built.assemble is assemble and built.shapes == shapes

    # Copies: the collector may give an application back at any moment.
    if not any(map(fits, [*_free])) and any(map(fits, [*_lent])):
        gc.collect()  # a server that has ended is a ring of objects that hold one another, and the application with them
    found = next(filter(fits, _free[::-1]), None)
    if found is not None:
        _free.remove(found)
    del _free[:-_MOST_FREE]
    return found


def _build(assemble: Callable[..., FastAPI], services: tuple[Services, ...], shapes: tuple[Services, ...]) -> _Built:
    parts = {(index, name): StandIn() for index, one in enumerate(services) for name in _parts_of(one)}
    standing = [
        replace(one, **{name: parts[index, name] for name in _parts_of(one)})  # type: ignore[arg-type]
        for index, one in enumerate(services)
    ]
    return _Built(assemble(*standing), assemble, shapes, parts)


def _take_back(built: _Built) -> None:
    built.fill(None)
    _lent.remove(built)
    _free.append(built)
