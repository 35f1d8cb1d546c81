"""Lists of the catalog, on SQLite and on PostgreSQL: pages, cursors, filters and searches."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from hub import catalog
from infra.database import reading
from tests.hub.cataloguing import DEMO, NOW, move, publish
from wegeft.contracts.adapter import (
    AdapterName,
    AdapterPage,
)
from wegeft.contracts.errors import (
    AdapterNotFound,
    InvalidRequest,
)


def test_adapters_are_listed_by_name_in_pages(engine: Engine) -> None:
    names = [AdapterName(namespace=namespace, name=f"a{number:02}") for namespace in ("B-ns", "a-ns") for number in range(5)]
    for name in names:
        publish(engine, f"job:{name}", name)
    publish(engine, "job:again", names[0], rank=32)
    pages = list(_pages(engine, limit=3))
    assert [len(page.adapters) for page in pages] == [3, 3, 3, 1]
    listed = [view for page in pages for view in page.adapters]
    assert [view.adapter for view in listed] == sorted((str(name) for name in names), key=str.lower)
    newest = next(view for view in listed if view.adapter == str(names[0]))
    assert (newest.latest_version, newest.rank, newest.aliases) == (2, 32, {"latest": 2})


def _pages(engine: Engine, limit: int) -> Iterator[AdapterPage]:
    cursor = None
    while True:
        with reading(engine) as connection:
            page = catalog.list_adapters(connection, limit, cursor)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


def test_a_page_neither_repeats_nor_skips_what_was_there_while_others_publish(engine: Engine) -> None:
    for number in range(0, 10, 2):
        publish(engine, f"job:{number}", AdapterName(namespace="n", name=f"a{number}"))
    seen = []
    for turn, page in enumerate(_pages(engine, limit=2)):
        seen += [view.adapter for view in page.adapters]
        publish(engine, f"job:new{turn}", AdapterName(namespace="n", name=f"a{turn * 2 + 1}"))
        publish(engine, f"job:again{turn}", AdapterName(namespace="n", name="a0"))
    assert len(seen) == len(set(seen))
    assert {f"n/a{number}" for number in range(0, 10, 2)} <= set(seen)


def test_an_empty_catalog_is_one_empty_page(engine: Engine) -> None:
    assert list(_pages(engine, limit=10)) == [AdapterPage(adapters=(), next_cursor=None)]


def test_versions_are_listed_newest_first_in_pages(engine: Engine) -> None:
    for number in range(7):
        publish(engine, f"job:{number}")
    move(engine, "first", 1)
    numbers: list[int] = []
    aliases: dict[int, tuple[str, ...]] = {}
    cursor = None
    while True:
        with reading(engine) as connection:
            page = catalog.list_versions(connection, DEMO, 3, cursor)
        numbers += [view.version for view in page.versions]
        aliases |= {view.version: view.aliases for view in page.versions if view.aliases}
        cursor = page.next_cursor
        if cursor is None:
            break
    assert numbers == [7, 6, 5, 4, 3, 2, 1]
    assert aliases == {7: ("latest",), 1: ("first",)}


def test_versions_of_an_unknown_adapter_are_not_found(engine: Engine) -> None:
    with pytest.raises(AdapterNotFound), reading(engine) as connection:
        catalog.list_versions(connection, DEMO, 3)


def _cursor_of(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


_ODD = ["null", "[]", "1e30", "true", "[" * 9000, '"x"', '[["adapters by name"]]', '["adapters by name"]', '["adapters by name", "a", "b"]']
_ODD += ['["adapters by name", 1]', '["adapters by name", null]', '["adapters by name", "\\ud800"]', '["adapters by name", "\\u0000"]']
_ODD += [
    '["adapters by updated", "x"]',
    '["adapters by updated", true]',
    '["adapters by updated", -1]',
    '["adapters by updated", 9223372036854775808]',
]
_ODD += ['["versions", -1]', '["versions", 99999999999999999999]', '["versions", "1"]', '["versions", 1.0]']


def test_a_foreign_cursor_is_refused(engine: Engine) -> None:
    publish(engine)
    for cursor in ["", "x", "é", "%%%", *map(_cursor_of, _ODD)]:
        for order in ("name", "updated"):
            with pytest.raises(InvalidRequest, match="cursor"), reading(engine) as connection:
                catalog.list_adapters(connection, 3, cursor, order=order)
        with pytest.raises(InvalidRequest, match="cursor"), reading(engine) as connection:
            catalog.list_versions(connection, DEMO, 3, cursor)


def test_a_cursor_of_another_list_is_refused(engine: Engine) -> None:
    for number in range(3):
        publish(engine, f"job:{number}")
        publish(engine, f"job:a{number}", AdapterName(namespace="demo", name=f"a{number}"))
    with reading(engine) as connection:
        versions = catalog.list_versions(connection, DEMO, 1).next_cursor
        names = catalog.list_adapters(connection, 1).next_cursor
        updated = catalog.list_adapters(connection, 1, order="updated").next_cursor
        for cursor, order in ((versions, "name"), (versions, "updated"), (names, "updated"), (updated, "name")):
            with pytest.raises(InvalidRequest, match="cursor"):
                catalog.list_adapters(connection, 1, cursor, order=order)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="cursor"):
            catalog.list_versions(connection, DEMO, 1, names)


def test_adapters_are_listed_by_their_last_version(engine: Engine) -> None:
    moments = {"a": 3, "b": 1, "c": 2, "d": 1}
    for name, day in moments.items():
        publish(engine, f"job:{name}", AdapterName(namespace="n", name=name), now=NOW + timedelta(days=day))
    publish(engine, "job:again", AdapterName(namespace="n", name="b"), now=NOW + timedelta(days=9, microseconds=7))
    seen, cursor = [], None
    while True:
        with reading(engine) as connection:
            page = catalog.list_adapters(connection, 1, cursor, order="updated")
        seen += [view.adapter for view in page.adapters]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ["n/b", "n/d", "n/c", "n/a"]  # whatever the clocks of those who published say


def found(engine: Engine, limit: int = 50, **wanted: Any) -> list[str]:
    with reading(engine) as connection:
        page = catalog.list_adapters(connection, limit, wanted=catalog.AdapterFilter(**wanted))
    return [view.adapter for view in page.adapters]


def test_a_list_is_filtered_by_the_newest_version(engine: Engine) -> None:
    def add(name: str, source: str, **changes: Any) -> None:
        publish(engine, source, AdapterName.parse(name), **changes)

    add("demo/sums", "1", base_model="org/Tiny@abc", rank=8)
    add("demo/sums", "2", base_model="org/Large@abc", rank=64)
    add("demo/words", "3", base_model="org/tiny-2@def", rank=8)
    add("Other/sums.100", "4", base_model="/models/tiny.gguf", rank=16)
    assert found(engine) == ["demo/sums", "demo/words", "Other/sums.100"]
    assert found(engine, namespace="DEMO") == ["demo/sums", "demo/words"]
    assert found(engine, namespace="dem") == []
    assert found(engine, rank=8) == ["demo/words"]
    assert found(engine, base_model="org/Large") == found(engine, base_model="org/Large@abc") == ["demo/sums"]
    assert found(engine, base_model="org/Tiny") == []
    assert found(engine, search="TINY") == ["demo/words", "Other/sums.100"]
    assert found(engine, search="tiny sums") == ["Other/sums.100"]
    assert found(engine, search="  ") == found(engine)
    assert found(engine, search="nowhere") == []
    assert found(engine, method="wegeft", namespace="other") == ["Other/sums.100"]
    assert found(engine, method="lora") == []


@pytest.mark.parametrize("search", ["%", "_", "\\", "'; DROP TABLE adapters; --", "a%b", "é"])
def test_a_search_is_never_a_pattern(engine: Engine, search: str) -> None:
    publish(engine)
    assert found(engine, search=search) == []


@pytest.mark.parametrize(
    "wanted", [{"search": "a\x00"}, {"search": "x" * 5000}, {"search": "a " * 9}, {"base_model": "\ud800"}, {"namespace": "\n"}]
)
def test_a_filter_that_cannot_be_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"printable|words") as caught:
        catalog.AdapterFilter(**wanted)
    assert {problem.path for problem in caught.value.problems} == set(wanted)
