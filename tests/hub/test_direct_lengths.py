"""Parts of another length than was announced, which an address to the store cannot refuse: nothing of them is read, nothing is left."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import urllib3

from hub.objects import Staging
from tests.http_clients import patient_request
from tests.hub.test_direct import PART, Direct, begin, direct, finish, put
from wegeft.contracts.adapter import digest_of

__all__ = ["direct"]
CONTENT = b"a" * 5000
LONGER = b"a" * 6000


def nothing() -> None:
    """What happens where nobody comes in between."""


@dataclass
class Overtaken:
    """The store's staging, where others come in between: once before an upload is completed, or after that, or after it is discarded."""

    staging: Staging
    before_complete: Callable[[], object] = nothing
    after_complete: Callable[[], object] = nothing
    after_discard: Callable[[], object] = nothing
    adopted: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.staging, name)

    def once(self, name: str) -> None:
        act = getattr(self, name)
        setattr(self, name, nothing)
        act()

    def complete(self, name: str, upload: str, sizes: Mapping[int, int]) -> bool:
        self.once("before_complete")
        is_as_announced = self.staging.complete(name, upload, sizes)
        self.once("after_complete")
        return is_as_announced

    def discard(self, name: str) -> None:
        self.staging.discard(name)
        self.once("after_discard")

    def adopt(self, name: str, digest: str) -> str:
        self.adopted.append(digest)
        return self.staging.adopt(name, digest)


@pytest.fixture
def overtaken(direct: Direct, monkeypatch: pytest.MonkeyPatch) -> Overtaken:
    found = direct.hub.store.staging()
    assert found is not None
    overtaken = Overtaken(found)
    monkeypatch.setattr(direct.hub.store, "staging", lambda: overtaken)
    return overtaken


@pytest.mark.parametrize("is_completed", [False, True], ids=["seen when it is put together", "seen afterwards"])
def test_a_part_that_grows_at_the_last_moment_is_not_read(direct: Direct, overtaken: Overtaken, is_completed: bool) -> None:
    view = begin(direct, CONTENT)
    put(view["addresses"][0], CONTENT)

    def grow() -> None:
        assert patient_request("PUT", view["addresses"][0]["url"], content=LONGER).status_code == 200

    def grow_afterwards() -> None:
        with urllib3.PoolManager() as connections:
            name = f"staging/{view['id']}"
            direct.s3.client(connections).put_object(direct.bucket, name, io.BytesIO(LONGER), len(LONGER))

    if is_completed:
        overtaken.after_complete = grow_afterwards
    else:
        overtaken.before_complete = grow
    refused = finish(direct, view)
    assert (refused.status_code, refused.json()["problems"][0]["path"]) == (422, "size")
    assert overtaken.adopted == [], "not a byte was read"
    assert direct.objects() == []
    again = begin(direct, CONTENT)
    put(again["addresses"][0], CONTENT)
    assert finish(direct, again).status_code == 201
    assert overtaken.adopted == [digest_of(CONTENT)]


def test_only_the_announced_parts_are_put_together(direct: Direct) -> None:
    staging = direct.hub.store.staging()
    assert staging is not None
    upload = staging.begin("one")
    content = b"b" * (PART + 10)
    for number, part in ((1, content[:PART]), (2, content[PART:])):
        assert patient_request("PUT", staging.address("one", upload, number, 60), content=part).status_code == 200
    for sizes in ({}, {1: PART}, {1: PART, 2: 9}, {1: PART, 2: 10, 3: 1}):
        assert not staging.complete("one", upload, sizes)
        assert staging.size("one") is None
    for _ in range(2):
        assert staging.complete("one", upload, {1: PART, 2: 10})
        assert staging.size("one") == PART + 10
    assert staging.adopt("one", digest_of(content)) == digest_of(content)


def test_of_two_that_finish_at_once_the_second_is_told_to_look_again(direct: Direct, overtaken: Overtaken) -> None:
    view = begin(direct, CONTENT)
    put(view["addresses"][0], CONTENT)
    overtaken.after_complete = partial(overtaken.staging.discard, view["id"])
    told = finish(direct, view)
    assert (told.status_code, told.json()["problems"][0]["path"]) == (409, "offset")
    again = begin(direct, CONTENT)
    assert (again["id"], again["offset"]) == (view["id"], 0)
    put(again["addresses"][0], CONTENT)
    assert finish(direct, again).status_code == 201
