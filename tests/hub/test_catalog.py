"""Publishing into the catalog and reading it back, on SQLite and on PostgreSQL, built by the real migrations."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select

from hub import catalog
from hub.publication import Publication
from infra.database import reading, writing
from tests.hub.cataloguing import DEMO, NOW, files, keep_files, move, publication, publish, resolve
from wegeft.contracts.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterName,
    AliasMove,
    FileEntry,
    digest_of,
)
from wegeft.contracts.errors import (
    AdapterNotFound,
    AliasNotFound,
    Conflict,
    InvalidInput,
    VersionNotFound,
)


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
