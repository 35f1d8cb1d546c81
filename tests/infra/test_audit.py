"""The audit log: every change is in it, on both databases, and whoever touches an entry is found out."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from infra import audit
from infra.auth import create_token, revoke_token
from infra.calling import calling
from infra.database import reading, writing
from tests.databases import open_database
from wegeft.contracts.audit import FIRST_HASH, AuditEnd, AuditEntry, ChainCheck, check_export

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """SQLite and PostgreSQL."""
    engine = open_database(database_url)
    yield engine
    engine.dispose()


def export(engine: Engine) -> list[str]:
    """The log as its lines."""
    with reading(engine) as connection:
        page = audit.read_page(connection, 0, 1000)
    return [*(entry.model_dump_json() for entry in page.entries), AuditEnd(head=page.head).model_dump_json()]


def chain(count: int) -> list[str]:
    """An export of so many entries, made without a database."""
    check, lines = ChainCheck(), []
    for number in range(1, count + 1):
        plain = {"at": NOW, "actor": "ada", "token_id": "t", "request_id": "r", "action": "alias.set", "subject": f"a/b@{number}"}
        entry = AuditEntry(sequence=number, previous=check.head.hash, details={"version": number}, **plain).sealed()
        assert list(check.read(entry)) == []
        lines.append(entry.model_dump_json())
    return [*lines, AuditEnd(head=check.head).model_dump_json()]


def test_entries_are_written_with_the_change_or_not_at_all(engine: Engine) -> None:
    """By whom, when and under which request; what is rolled back leaves no gap; no secret is in it."""
    with calling("request-1") as call:
        call.actor, call.token_id, call.at = "root", "0" * 12, NOW
        with writing(engine) as connection:
            token_id, token = create_token(connection, "ada", "write", NOW)
        with pytest.raises(RuntimeError):
            _revoke_and_fail(engine, token_id)
        with writing(engine) as connection:
            revoke_token(connection, token_id, NOW)
            revoke_token(connection, token_id, NOW)
    lines = export(engine)
    first, second = (AuditEntry.model_validate_json(line) for line in lines[:-1])
    assert (first.sequence, first.action, first.subject, first.actor, first.request_id) == (
        1,
        "token.create",
        token_id,
        "root",
        "request-1",
    )
    assert (first.previous, second.previous, second.action, second.at) == (FIRST_HASH, first.hash, "token.revoke", NOW)
    assert token.rpartition("_")[2] not in "".join(lines)
    assert check_export(lines, noted=first.hash)[1] == ()


def _revoke_and_fail(engine: Engine, token_id: str) -> None:
    with writing(engine) as connection:
        revoke_token(connection, token_id, NOW)
        raise RuntimeError


def test_many_writers_make_one_chain(engine: Engine) -> None:
    """At the same moment, several entries each: no gap, nothing lost."""

    def write(number: int) -> None:
        with writing(engine) as connection:
            for part in range(3):
                audit.note(connection, "test", f"{number}.{part}", NOW)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    lines = export(engine)
    head, problems = check_export(lines)
    assert (head.sequence, problems) == (72, ())
    subjects = [json.loads(line)["subject"] for line in lines[:-1]]
    assert all(subjects[at].split(".")[0] == subjects[at + 2].split(".")[0] for at in range(0, 72, 3))


CORRUPTIONS: dict[str, tuple[str, str]] = {
    "changed": ("UPDATE audit SET entry = replace(entry, '\"test\"', '\"fest\"') WHERE sequence = 2", "was changed"),
    "changed with its hash": ("UPDATE audit SET hash = '" + "a" * 64 + "' WHERE sequence = 2", "was changed"),
    "unreadable": ("UPDATE audit SET entry = 'x' WHERE sequence = 2", "was changed"),
    "removed": ("DELETE FROM audit WHERE sequence = 2", "1 before it are missing"),
    "removed at the end": ("DELETE FROM audit WHERE sequence = 4", "does not end where it says"),
    "removed from the beginning": ("DELETE FROM audit WHERE sequence = 1", "1 before it are missing"),
    "inserted": ("INSERT INTO audit SELECT 5, entry, hash FROM audit WHERE sequence = 2", "stands where it does not belong"),
    "head moved": ("UPDATE audit_head SET sequence = 3", "does not end where it says"),
    "emptied": ("DELETE FROM audit", "does not end where it says"),
}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_touched_row_is_found(tmp_path: Path, kind: str) -> None:
    """Whatever somebody with the database in hand does to one row."""
    engine = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    with writing(engine) as connection:
        for number in range(4):
            audit.note(connection, "test", str(number), NOW)
    assert check_export(export(engine))[1] == ()
    with writing(engine) as connection:
        connection.exec_driver_sql(CORRUPTIONS[kind][0])
    assert any(CORRUPTIONS[kind][1] in problem.message for problem in check_export(export(engine))[1])
    engine.dispose()


def change_field(lines: list[str]) -> None:
    lines[2] = lines[2].replace('"ada"', '"bob"')


def remove(lines: list[str]) -> None:
    del lines[2]


def insert(lines: list[str]) -> None:
    lines.insert(3, lines[2])


def swap(lines: list[str]) -> None:
    lines[1], lines[2] = lines[2], lines[1]


def rehash(lines: list[str]) -> None:
    entry = AuditEntry.model_validate_json(lines[2]).model_copy(update={"actor": "bob"})
    lines[2] = entry.sealed().model_dump_json()


def renumber(lines: list[str]) -> None:
    entry = AuditEntry.model_validate_json(lines[2]).model_copy(update={"sequence": 9})
    lines[2] = entry.sealed().model_dump_json()


def cut_end(lines: list[str]) -> None:
    del lines[-1]


def cut_last(lines: list[str]) -> None:
    del lines[-2]


def append(lines: list[str]) -> None:
    lines.append(lines[0])


def add_key(lines: list[str]) -> None:
    lines[2] = lines[2][:-1] + ',"actor":"bob"}'


def add_nonsense(lines: list[str]) -> None:
    lines.insert(1, "[" * 100_000)


@pytest.mark.parametrize(
    ("corrupt", "says"),
    [
        (change_field, "was changed"),
        (remove, "1 before it are missing"),
        (insert, "stands where it does not belong"),
        (swap, "are missing"),
        (rehash, "does not follow the one before it"),
        (renumber, "6 before it are missing"),
        (cut_end, "the line that says where the log ends is missing"),
        (cut_last, "does not end where it says"),
        (append, "something stands behind the end"),
        (add_key, "not a line of an audit log"),
        (add_nonsense, "not a line of an audit log"),
    ],
)
def test_a_touched_export_is_found(corrupt: Callable[[list[str]], None], says: str) -> None:
    """By its lines alone."""
    lines = chain(6)
    assert check_export(lines)[1] == ()
    corrupt(lines)
    assert any(says in problem.message for problem in check_export(lines)[1])


@pytest.mark.parametrize("position", range(6))
def test_every_byte_of_an_entry_counts(position: int) -> None:
    """Each of its fields, in each entry."""
    whole = json.loads(chain(6)[position])
    changes: dict[str, Any] = {
        "at": "2026-11-21T12:00:01Z",
        "sequence": 99,
        "details": {"version": 99},
        "previous": "f" * 64,
        "hash": "f" * 64,
    }
    for field in whole:
        lines = chain(6)
        lines[position] = json.dumps(whole | {field: changes.get(field, "e" * 64)})
        assert check_export(lines)[1], field


def test_a_log_written_anew_lacks_what_was_noted() -> None:
    """The one thing that a chain cannot tell by itself."""
    noted = json.loads(chain(6)[3])["hash"]
    anew = chain(3)
    assert check_export(anew)[1] == ()
    assert [problem.value for problem in check_export(anew, noted)[1]] == [noted]
    assert check_export([])[1] != ()
