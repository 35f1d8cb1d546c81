"""Aliases of the catalog, on SQLite and on PostgreSQL: moved by compare-and-set, deleted, refused."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from hub import catalog
from infra.database import reading, writing
from tests.databases import noted_statements
from tests.hub.cataloguing import DEMO, move, publish, resolve
from wegeft.contracts.errors import (
    AliasMoved,
    AliasNotFound,
    InvalidReference,
    InvalidRequest,
)


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


def test_the_aliases_of_a_page_of_versions_are_read_once(engine: Engine) -> None:
    """And not once more for each version: whoever makes very many of them would make every list of versions slow."""
    publish(engine, "job:1")
    publish(engine, "job:2")
    for alias, number in (("one", 1), ("two", 2), ("first", 1)):
        move(engine, alias, number)
    with noted_statements(engine) as statements, reading(engine) as connection:
        found = catalog.list_versions(connection, DEMO, 10).versions
    assert [view.aliases for view in found] == [("two", "latest"), ("first", "one")]
    versions, aliases = (statement for statement in statements if statement.startswith("SELECT"))
    assert "FROM aliases" in aliases
    assert "aliases" not in versions
