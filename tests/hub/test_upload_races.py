"""An upload that is begun again while it ends: on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event

from hub import catalog
from hub.catalog import Upload
from infra.database import writing
from tests.hub.serving import NOW
from wegeft.contracts.adapter import digest_of

DIGEST = digest_of(b"some")


def upload(number: int, multipart: str | None = None, hours: int = 1) -> Upload:
    until = NOW + timedelta(hours=hours)
    return Upload(id=f"{number:032}", owner="token:x", digest=DIGEST, size=4, part_bytes=2, expires_at=until, parts=(), multipart=multipart)


def begin(engine: Engine, wanted: Upload) -> tuple[Upload, bool]:
    with writing(engine) as connection:
        return catalog.open_upload(connection, wanted, 8, NOW)


def test_an_upload_is_begun_again_while_it_ends(engine: Engine) -> None:
    first, _ = begin(engine, upload(1))
    ends: list[threading.Thread] = []

    def end() -> None:
        with writing(engine) as connection:
            catalog.close_upload(connection, first, NOW)

    def come_between(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO uploads ") and not ends:
            ends.append(threading.Thread(target=end))
            ends[0].start()
            ends[0].join(timeout=0.5)

    event.listen(engine, "after_cursor_execute", come_between)
    found, is_new = begin(engine, upload(2))
    ends[0].join(timeout=20)
    assert (found.id, is_new) == (first.id, False)
    assert begin(engine, upload(3)) == (upload(3), True), "the one that was ended is gone"


@pytest.mark.parametrize(("multipart", "hours"), [(None, 1), ("", 5)], ids=["through the hub", "to the store"])
def test_beginning_again_keeps_what_goes_to_the_store_alone(engine: Engine, multipart: str | None, hours: int) -> None:
    assert begin(engine, upload(1, multipart))[1]
    found, is_new = begin(engine, upload(2, multipart, hours=5))
    assert (found, is_new) == (upload(1, multipart, hours=hours), False)
