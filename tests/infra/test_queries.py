"""A query read in one go is what FastAPI would have read, refuses what it would have refused, and is described as it describes it."""

from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Query
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, Field

from hub.adapter_query import AdapterQuery, FilterQuery
from infra.http import create_app
from infra.queries import described_query, reading_query

Texts = Annotated[tuple[str, ...], Field(max_length=2)]


class Wanted(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rank: int | None = Field(default=None, ge=1, description="At least one.")
    tag: Texts = ()
    signed: bool | None = None


def make_app(*, is_ours: bool) -> FastAPI:
    router = APIRouter()

    def add(path: str, model: type[BaseModel]) -> None:
        asked = Depends(reading_query(model)) if is_ours else Query()

        @router.get(path, openapi_extra=described_query(model) if is_ours else None)
        def look(query: Annotated[model, asked]) -> dict[str, Any]:  # type: ignore[valid-type]
            return query.model_dump()  # type: ignore[attr-defined,no-any-return]

    for path, model in (("/wanted", Wanted), ("/adapters", AdapterQuery), ("/facets", FilterQuery)):
        add(path, model)
    return create_app([router], title="t", version="1")


@pytest.fixture(scope="module")
def apps() -> tuple[TestClient, TestClient]:
    """Ours and FastAPI's own."""
    ours, theirs = (TestClient(make_app(is_ours=is_ours), headers={"X-Request-ID": "one"}) for is_ours in (True, False))
    return ours, theirs


QUERIES = [
    "/wanted?name=a",
    "/wanted?name=a&rank=8&tag=x&tag=y&signed=true",
    "/wanted?name=a&name=b&rank=",
    "/wanted?name=&tag=",
    "/wanted?tag=x&tag=y&tag=z&rank=0&signed=perhaps",
    "/wanted?name=a&nmae=b",
    "/wanted",
    "/wanted?name=%F0%9F%90%98+%2B%26&rank=1e3",
    "/adapters?order=updated&limit=7&tag=one&tag=two&metric=eval_loss%3C0.5&signed=false&format=lora",
    "/adapters?order=backwards&limit=0&after=nonsense&metric=loss&metric=x%3C1&format=gguf&signed=2&rank=99999999999",
    "/adapters?after=nonsense",
    "/adapters?search=%00&tag=&tag=a&base_model=" + "x" * 300,
    "/adapters?limit=1&order=name&ordre=name&" + "&".join(f"tag={number}" for number in range(9)),
    "/facets?order=name",
]


@pytest.mark.parametrize("address", QUERIES)
def test_it_is_read_and_refused_alike(apps: tuple[TestClient, TestClient], address: str) -> None:
    """With the same answer, and where it is refused with every problem in it."""
    ours, theirs = (app.get(address) for app in apps)
    assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json())


def test_both_kinds_of_answers_are_among_these(apps: tuple[TestClient, TestClient]) -> None:
    found = [apps[0].get(address).status_code for address in QUERIES]
    assert set(found) == {200, 422}


def test_it_is_described_alike(apps: tuple[TestClient, TestClient]) -> None:
    ours, theirs = (app.get("/api/v1/openapi.json").json()["paths"] for app in apps)
    for path in ("/wanted", "/adapters", "/facets"):
        assert ours[path]["get"]["parameters"] == theirs[path]["get"]["parameters"]
        assert len(ours[path]["get"]["parameters"]) > 3
