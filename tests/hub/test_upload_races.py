"""An upload that is begun again while it ends: on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event

from hub import catalog
from hub.catalog import Sender, Upload
from hub.intake import Intake
from hub.objects import MemoryStore
from hub.uploads import Uploads
from infra.database import reading, writing
from infra.principals import Principal, Role
from tests.hub.serving import NOW
from wegeft.contracts.adapter import digest_of

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


def test_an_upload_that_two_begin_at_once_counts_once(engine: Engine) -> None:
    """The second comes while the first counts it: both go on with the same one, and no room is kept for another."""
    sender = Sender(caller=Principal(name="ada", role=Role.WRITE, token_id="x"), most_bytes=100, namespace="acme")
    intake = Intake(engine=engine, store=MemoryStore(), clock=lambda: NOW)
    uploads = Uploads(intake=intake, stage=lambda connection, upload, come: catalog.reserve(connection, sender, upload, come, NOW))
    begun: list[str] = []

    def begin_one(number: int) -> None:
        with writing(engine) as connection:
            begun.append(uploads.begin(connection, upload(number))[0].id)

    others = come_between(engine, "INSERT INTO stagers ", lambda: begin_one(2))
    begin_one(1)
    others[0].join(timeout=20)
    with reading(engine) as connection:
        assert (len(begun), len(set(begun)), catalog.count_staged(connection, "acme", NOW)) == (2, 1, 4)
