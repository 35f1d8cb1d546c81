"""Uploads that are begun, go on and end at the same moment: on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, select

from hub import catalog
from hub.catalog import Part, Sender, Upload
from hub.collection import Collector
from hub.intake import Intake
from hub.objects import MemoryStore
from hub.uploads import Uploads
from infra.database import reading, writing
from infra.principals import Principal, Role
from tests.hub.serving import NOW
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import NotFound, QuotaExceeded, TooLarge

DIGEST = digest_of(b"some")


def upload(number: int, multipart: str | None = None, hours: int = 1) -> Upload:
    until = NOW + timedelta(hours=hours)
    return Upload(id=f"{number:032}", owner="token:x", digest=DIGEST, size=4, part_bytes=2, expires_at=until, parts=(), multipart=multipart)


def begin(engine: Engine, wanted: Upload) -> tuple[Upload, bool]:
    with writing(engine) as connection:
        return catalog.open_upload(connection, wanted, 8, NOW)


def come_between(engine: Engine, beginning: str, act: Callable[[], object]) -> list[threading.Thread]:
    """Let something happen once, beside a transaction that has just executed a statement that begins so."""
    acts: list[threading.Thread] = []

    def look(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(beginning) and not acts:
            acts.append(threading.Thread(target=act))
            acts[0].start()
            acts[0].join(timeout=0.5)

    event.listen(engine, "after_cursor_execute", look)
    return acts


def test_an_upload_is_begun_again_while_it_ends(engine: Engine) -> None:
    first, _ = begin(engine, upload(1))

    def end() -> None:
        with writing(engine) as connection:
            catalog.close_upload(connection, first, NOW)

    ends = come_between(engine, "INSERT INTO uploads ", end)
    found, is_new = begin(engine, upload(2))
    ends[0].join(timeout=20)
    assert (found.id, is_new) == (first.id, False)
    assert begin(engine, upload(3)) == (upload(3), True), "the one that was ended is gone"


@pytest.mark.parametrize(("multipart", "hours"), [(None, 1), ("", 5)], ids=["through the hub", "to the store"])
def test_beginning_again_keeps_what_goes_to_the_store_alone(engine: Engine, multipart: str | None, hours: int) -> None:
    assert begin(engine, upload(1, multipart))[1]
    found, is_new = begin(engine, upload(2, multipart, hours=5))
    assert (found, is_new) == (upload(1, multipart, hours=hours), False)


def counted_uploads(engine: Engine, most_bytes: int = 100) -> Uploads:
    """Uploads that count for Ada."""
    intake = Intake(engine=engine, store=MemoryStore(), clock=lambda: NOW)

    def count(connection: Connection, upload: Upload, come: int) -> None:
        sender = Sender(caller=Principal(name="ada", role=Role.WRITE, token_id="x"), most_bytes=most_bytes, namespace="acme")
        catalog.reserve(connection, sender, upload, come, NOW)

    return Uploads(intake=intake, stage=count)


def counted(engine: Engine) -> int:
    with reading(engine) as connection:
        return catalog.count_staged(connection, "ada", NOW)


@pytest.mark.parametrize("statement", ["DELETE FROM upload_parts", "INSERT INTO uploads ", "INSERT INTO stagers ", "INSERT INTO staged "])
def test_an_upload_that_two_begin_at_once_counts_once(engine: Engine, statement: str) -> None:
    """The second comes while the first begins: both go on with the same one, and no room is kept for another."""
    uploads, begun = counted_uploads(engine), list[str]()

    def begin_one(number: int) -> None:
        with writing(engine) as connection:
            begun.append(uploads.begin(connection, upload(number))[0].id)

    others = come_between(engine, statement, lambda: begin_one(2))
    begin_one(1)
    others[0].join(timeout=20)
    assert (len(begun), len(set(begun)), counted(engine)) == (2, 1, 4)


def test_beginning_sending_giving_up_and_collecting_at_once_wait_in_no_circle(engine: Engine) -> None:
    """Each upload is locked before the bytes and the rooms that it takes; in the end nothing counts and nothing is left."""
    uploads = counted_uploads(engine, most_bytes=12)
    collector = Collector(engine=engine, store=uploads.intake.store)

    def act(number: int) -> None:
        wanted = replace(upload(number), digest=digest_of(bytes([number % 3])), expires_at=NOW + timedelta(hours=number % 2))
        with suppress(NotFound, QuotaExceeded, TooLarge):
            with writing(engine) as connection:
                found, _ = uploads.begin(connection, wanted)
            for part in (b"ab", b"cd"):
                with writing(engine) as connection:
                    catalog.expect(connection, digest_of(part), NOW, "one")
                with writing(engine) as connection:
                    held = catalog.find_upload(connection, found.owner, found.id, NOW, is_held=True)
                    uploads.stage(connection, held, held.offset + 2)
                    catalog.add_part(connection, held, Part(digest=digest_of(part), size=2), NOW + timedelta(hours=1))
            with writing(engine) as connection:
                catalog.give_up(connection, found.id, NOW)
        collector.collect(NOW, 3)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(act, range(24)))
    later = NOW + timedelta(days=3)
    while not collector.collect(later, 3).is_done:
        pass
    with reading(engine) as connection:
        left = [connection.execute(select(table)).all() for table in (catalog.UPLOADS, catalog.STAGED, catalog.HOLDS, catalog.BLOBS)]
    assert left == [[], [], [], []]
