"""Routers that gather routes: as they are, unless there is something to add."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.testclient import TestClient

from infra.routers import Gathering
from wegeft.contracts.errors import Forbidden


def refuse() -> None:
    raise Forbidden("nobody may")


def leaf(path: str = "/leaf") -> APIRouter:
    router = APIRouter()

    @router.get(path)
    def get_leaf() -> str:
        return path

    return router


def app_of(router: APIRouter) -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    return app


def test_routes_are_taken_as_they_are_and_in_their_order() -> None:
    first, second = leaf("/{name}"), leaf("/second")
    inner, whole = Gathering(), Gathering()
    for part in (first, second):
        inner.include_router(part)
    whole.include_router(inner)
    assert [id(route) for route in whole.routes] == [id(route) for route in (*first.routes, *second.routes)]
    assert TestClient(app_of(whole)).get("/second").json() == "/{name}", "the first that fits answers"


@pytest.mark.parametrize(
    ("own", "added", "path"),
    [
        ({"prefix": "/over"}, {}, "/over/leaf"),
        ({}, {"prefix": "/over"}, "/over/leaf"),
        ({"prefix": "/far"}, {"prefix": "/over"}, "/far/over/leaf"),
        ({"tags": ["t"]}, {}, "/leaf"),
    ],
)
def test_what_a_router_adds_is_added(own: dict[str, Any], added: dict[str, Any], path: str) -> None:
    outer, whole = Gathering(**own), Gathering()
    outer.include_router(leaf(), **added)
    whole.include_router(outer)
    app = app_of(whole)
    assert TestClient(app).get(path).json() == "/leaf"
    assert app.openapi()["paths"][path]["get"].get("tags") == own.get("tags")


@pytest.mark.parametrize("place", ["its own", "added"])
def test_who_may_not_pass_does_not(place: str) -> None:
    guard = [Depends(refuse)]
    outer = Gathering(dependencies=guard if place == "its own" else None)
    outer.include_router(leaf(), **({"dependencies": guard} if place == "added" else {}))
    with pytest.raises(Forbidden):
        TestClient(app_of(outer)).get("/leaf")


def test_what_is_kept_out_of_the_description_stays_out() -> None:
    outer = Gathering(include_in_schema=False)
    outer.include_router(leaf())
    assert app_of(outer).openapi()["paths"] == {}
