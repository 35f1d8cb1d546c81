"""The catalog, on SQLite and on PostgreSQL, built by the real migrations."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select

from hub import catalog
from hub.publication import Publication
from infra.database import make_engine, reading, upgrade, writing
from wegeft.contracts.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterName,
    AdapterPage,
    AdapterRef,
    AliasMove,
    FileEntry,
    VersionView,
    digest_of,
)
from wegeft.contracts.errors import (
    AdapterNotFound,
    AliasMoved,
    AliasNotFound,
    Conflict,
    InvalidInput,
    InvalidReference,
    InvalidRequest,
    VersionNotFound,
)

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DEMO = AdapterName(namespace="demo", name="arithmetic")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    upgrade(engine)
    yield engine
    engine.dispose()


def files(content: bytes = b"weights") -> tuple[FileEntry, ...]:
    entries = {CONFIG_FILE: b"{}", WEIGHTS_FILE: content}
    return tuple(FileEntry(path=path, digest=digest_of(body), size=len(body)) for path, body in entries.items())


def publication(source: str = "job:1", adapter: AdapterName = DEMO, **changes: Any) -> Publication:
    described: dict[str, Any] = {
        "base_model": "org/base@abc",
        "method": "wegeft",
        "rank": 8,
        "created_by": "ada",
        "metrics": {"eval_loss": 0.5},
    }
    return Publication(adapter=adapter, files=files(), source=source, **(described | changes))


def publish(engine: Engine, source: str = "job:1", adapter: AdapterName = DEMO, now: datetime = NOW, **changes: Any) -> int:
    with writing(engine) as connection:
        keep_files(connection)
        return catalog.publish(connection, publication(source, adapter, **changes), now).version


def keep_files(connection: Connection) -> None:
    """Let the files be stored, as far as the catalog knows."""
    for entry in files():
        catalog.expect(connection, entry.digest, NOW + timedelta(days=1))


def resolve(engine: Engine, ref: str) -> VersionView:
    with reading(engine) as connection:
        return catalog.resolve(connection, AdapterRef.parse(ref))


def move(engine: Engine, alias: str, version: int, expected: int | None = None) -> None:
    with writing(engine) as connection:
        catalog.set_alias(connection, DEMO, alias, AliasMove(version=version, expected=expected), NOW)


def test_a_published_version_is_read_back_whole(engine: Engine) -> None:
    assert publish(engine) == 1
    view = resolve(engine, "demo/arithmetic")
    assert (view.adapter, view.version, view.ref) == ("demo/arithmetic", 1, "demo/arithmetic@1")
    assert view.aliases == ("latest",)
    assert (view.source, view.base_model, view.method, view.rank) == ("job:1", "org/base@abc", "wegeft", 8)
    assert view.metrics == {"eval_loss": 0.5}
    assert view.created_at == NOW
    assert view.size == len(b"{}weights")
    assert view.manifest.files == tuple(sorted(files(), key=lambda entry: entry.path))
    assert digest_of(view.manifest.to_bytes()) == view.manifest_digest
    assert view.manifest.annotations["org.wegeft.base-model"] == "org/base@abc"


def test_versions_count_up_for_each_adapter_alone(engine: Engine) -> None:
    other = AdapterName(namespace="demo", name="other")
    assert [publish(engine, f"job:{number}") for number in range(3)] == [1, 2, 3]
    assert publish(engine, "job:other", other) == 1
    assert publish(engine, "job:3") == 4
    assert resolve(engine, "demo/arithmetic@2").version == 2
    assert resolve(engine, "demo/arithmetic@latest").version == 4


def test_publishing_a_source_again_returns_what_it_made(engine: Engine) -> None:
    assert publish(engine, "job:a") == 1
    assert publish(engine, "job:b") == 2
    later = NOW + timedelta(days=1)
    assert publish(engine, "job:a", now=later, rank=64, base_model="another") == 1
    assert publish(engine, "job:c") == 3
    first = resolve(engine, "demo/arithmetic@1")
    assert (first.created_at, first.rank, first.base_model) == (NOW, 8, "org/base@abc")


def test_a_source_publishes_to_one_adapter_only(engine: Engine) -> None:
    publish(engine, "job:a")
    other = AdapterName(namespace="demo", name="other")
    with pytest.raises(Conflict, match="another adapter"):
        publish(engine, "job:a", other)
    with pytest.raises(AdapterNotFound):
        resolve(engine, "demo/other")


def test_a_name_differs_by_more_than_its_case(engine: Engine) -> None:
    publish(engine, "job:a", AdapterName(namespace="Demo", name="Arithmetic"))
    assert publish(engine, "job:b", AdapterName(namespace="demo", name="ARITHMETIC")) == 2
    assert resolve(engine, "DEMO/arithmetic@1").adapter == "Demo/Arithmetic"


def test_what_is_rolled_back_leaves_no_trace_and_no_gap(engine: Engine) -> None:
    def publish_and_fail() -> None:
        with writing(engine) as connection:
            keep_files(connection)
            catalog.publish(connection, publication("job:lost"), NOW)
            raise RuntimeError("too late")

    with pytest.raises(RuntimeError, match="too late"):
        publish_and_fail()
    with pytest.raises(AdapterNotFound):
        resolve(engine, "demo/arithmetic")
    assert publish(engine, "job:kept") == 1


def test_a_number_is_never_given_again(engine: Engine) -> None:
    publish(engine, "job:1")
    publish(engine, "job:2")
    with writing(engine) as connection:
        connection.execute(catalog.EVALUATIONS.delete())
        connection.execute(catalog.VERSIONS.delete().where(catalog.VERSIONS.c.number == 2))
        connection.execute(catalog.ADAPTERS.update().values(latest_number=1))
    assert publish(engine, "job:3") == 3


def test_sixteen_publishers_of_one_new_adapter_get_consecutive_numbers(engine: Engine) -> None:
    start = threading.Barrier(16)

    def race(number: int) -> list[int]:
        start.wait()
        return [publish(engine, f"job:{number}.{turn}") for turn in range(3)]

    with ThreadPoolExecutor(16) as threads:
        numbers = [version for versions in threads.map(race, range(16)) for version in versions]
    assert sorted(numbers) == list(range(1, 49))
    assert resolve(engine, "demo/arithmetic").version == 48


def test_sixteen_publishers_of_one_source_make_one_version(engine: Engine) -> None:
    start = threading.Barrier(16)

    def race(_number: int) -> int:
        start.wait()
        return publish(engine, "job:same")

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(race, range(16))) == {1}
    with reading(engine) as connection:
        assert len(connection.execute(select(catalog.VERSIONS.c.id)).all()) == 1


def test_one_source_racing_to_two_adapters_publishes_once(engine: Engine) -> None:
    start, names = threading.Barrier(8), [AdapterName(namespace="demo", name=f"a{number}") for number in range(8)]

    def race(adapter: AdapterName) -> int | str:
        start.wait()
        try:
            return publish(engine, "job:same", adapter)
        except Conflict:
            return "conflict"

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(race, names))
    assert sorted(outcomes, key=str) == [1, *["conflict"] * 7]
    with reading(engine) as connection:
        assert len(catalog.list_adapters(connection, 10).adapters) == 1


def test_an_alias_moves_by_compare_and_set(engine: Engine) -> None:
    publish(engine, "job:1")
    publish(engine, "job:2")
    move(engine, "production", 1, expected=0)
    assert resolve(engine, "demo/arithmetic@production").version == 1
    assert resolve(engine, "demo/arithmetic@1").aliases == ("production",)
    with pytest.raises(AliasMoved) as caught:
        move(engine, "production", 2, expected=0)
    assert "points to 1" in str(caught.value)
    move(engine, "production", 2, expected=1)
    assert resolve(engine, "demo/arithmetic@2").aliases == ("production", "latest")
    with pytest.raises(AliasMoved):
        move(engine, "production", 1, expected=1)
    move(engine, "production", 1)
    assert resolve(engine, "demo/arithmetic@production").version == 1


def test_moving_an_alias_again_to_where_it_is_changes_nothing(engine: Engine) -> None:
    publish(engine, "job:1")
    publish(engine, "job:2")
    move(engine, "production", 1, expected=0)
    move(engine, "production", 1, expected=0)
    move(engine, "production", 2, expected=1)
    move(engine, "production", 2, expected=1)
    assert resolve(engine, "demo/arithmetic@production").version == 2


def test_an_alias_that_points_nowhere_is_told(engine: Engine) -> None:
    publish(engine)
    with pytest.raises(AliasMoved) as caught:
        move(engine, "production", 1, expected=7)
    assert "points nowhere" in str(caught.value)


@pytest.mark.parametrize("expected", [0, 1])
def test_of_sixteen_who_move_an_alias_one_wins(engine: Engine, expected: int) -> None:
    for number in range(17):
        publish(engine, f"job:{number}")
    if expected:
        move(engine, "production", expected)
    start = threading.Barrier(16)

    def race(version: int) -> int:
        start.wait()
        try:
            move(engine, "production", version, expected)
        except AliasMoved:
            return 0
        return version

    with ThreadPoolExecutor(16) as threads:
        winners = [version for version in threads.map(race, range(2, 18)) if version]
    assert winners == [resolve(engine, "demo/arithmetic@production").version]


def test_an_alias_can_be_deleted_once(engine: Engine) -> None:
    publish(engine)
    move(engine, "production", 1)
    with writing(engine) as connection:
        catalog.delete_alias(connection, DEMO, "production")
    with pytest.raises(AliasNotFound), writing(engine) as connection:
        catalog.delete_alias(connection, DEMO, "production")
    with pytest.raises(AliasNotFound):
        resolve(engine, "demo/arithmetic@production")


def test_latest_cannot_be_moved_by_hand(engine: Engine) -> None:
    publish(engine)
    with pytest.raises(InvalidRequest, match="newest"):
        move(engine, "latest", 1)
    with pytest.raises(InvalidRequest, match="newest"), writing(engine) as connection:
        catalog.delete_alias(connection, DEMO, "latest")


def test_a_malformed_alias_is_refused(engine: Engine) -> None:
    publish(engine)
    for alias in ["", "1", "2nd", "UPPER", "a b", "ä", "a" * 65, "../x", "a\x00"]:
        with pytest.raises(InvalidReference, match="alias"):
            move(engine, alias, 1)


def test_what_is_missing_is_named(engine: Engine) -> None:
    publish(engine)
    with pytest.raises(AdapterNotFound) as no_adapter:
        resolve(engine, "demo/unknown@3")
    assert "demo/unknown" in str(no_adapter.value)
    with pytest.raises(VersionNotFound) as no_version:
        resolve(engine, "demo/arithmetic@2")
    assert "the latest is 1" in str(no_version.value)
    with pytest.raises(VersionNotFound):
        resolve(engine, "demo/arithmetic@999999999")
    with pytest.raises(AliasNotFound) as no_alias:
        resolve(engine, "demo/arithmetic@production")
    assert "there are latest" in str(no_alias.value)
    with pytest.raises(VersionNotFound):
        move(engine, "production", 2)
    with pytest.raises(AdapterNotFound), writing(engine) as connection:
        catalog.set_alias(connection, AdapterName(namespace="demo", name="unknown"), "production", AliasMove(version=1), NOW)


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


def test_a_version_is_found_by_its_commit(engine: Engine) -> None:
    publish(engine, "job:1")
    publish(engine, "job:2")
    for number in (1, 2):
        view = resolve(engine, f"demo/arithmetic@{number}")
        with reading(engine) as connection:
            assert catalog.resolve_commit(connection, DEMO, view.manifest_digest.removeprefix("sha256:")[:40]) == view
    with pytest.raises(VersionNotFound), reading(engine) as connection:
        catalog.resolve_commit(connection, DEMO, "0" * 40)
    with pytest.raises(AdapterNotFound), reading(engine) as connection:
        catalog.resolve_commit(connection, AdapterName(namespace="a", name="b"), "0" * 40)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"base_model": ""}, "base_model"),
        ({"base_model": "a\x00b"}, "base_model"),
        ({"base_model": "x" * 4201}, "base_model"),
        ({"method": "we\nGeFT"}, "method"),
        ({"source": "s" * 201}, "source"),
        ({"created_by": ""}, "created_by"),
        ({"rank": -1}, "rank"),
        ({"rank": 2**31}, "rank"),
        ({"metrics": {"loss": float("nan")}}, "metrics.loss"),
        ({"metrics": {"loss": float("inf")}}, "metrics.loss"),
        ({"metrics": {"\x00": 1.0}}, "metrics.'\\x00'"),
        ({"metrics": {str(number): 1.0 for number in range(501)}}, "metrics"),
        ({"files": files()[:1]}, WEIGHTS_FILE),
        ({"files": ()}, CONFIG_FILE),
        ({"files": (*files(), files()[0])}, "files"),
        ({"files": (*files(), FileEntry(path="adapter_model.bin", digest=digest_of(b""), size=0))}, "files"),
        ({"files": files() * 100}, "files"),
    ],
)
def test_what_cannot_be_published_is_refused_by_name(changes: dict[str, Any], path: str) -> None:
    described: dict[str, Any] = {"adapter": DEMO, "files": files(), "source": "job:1", "base_model": "b", "method": "wegeft", "rank": 8}
    with pytest.raises(InvalidInput) as caught:
        Publication(**(described | {"created_by": "ada"} | changes))
    assert path in {problem.path for problem in caught.value.problems}


def test_every_problem_of_a_publication_is_named_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        Publication(adapter=DEMO, files=(), source="", base_model="", method="", rank=-1, created_by="", metrics={"x": float("nan")})
    assert len(caught.value.problems) == 8
