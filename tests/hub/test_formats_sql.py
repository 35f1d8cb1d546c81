"""Derived formats in SQL, on SQLite and on PostgreSQL: a row and its bytes come, stay and go together."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from hub import catalog
from hub.catalog.format_tables import DERIVED_FORMATS
from hub.catalog.quotas import measure
from hub.objects import MemoryStore
from infra.database import reading, writing
from tests.hub import format_files as made
from tests.hub.serving import NOW, Hub, made_hub
from wegeft.contracts.adapter import AdapterName, AdapterRef, FileEntry, VersionView
from wegeft.contracts.errors import InvalidRequest, NotFound
from wegeft.contracts.formats import AttachedFormat, FormatAttachment

MONTH = timedelta(days=30)
LONG_ENOUGH_TO_WAIT_FOR_A_LOCK_SECONDS = 0.6
SHELF: catalog.Shelf = ("lora", "float32")


def attach(hub: Hub, version: VersionView, content: bytes, now: datetime = NOW, digest: str | None = None) -> AttachedFormat:
    entries = [FileEntry(path=name, digest=digest or hub.put(content + name.encode()), size=len(content) + 1) for name in "ab"]
    told = {"base_model": "org/base", "largest_error": 1e-7, "largest_error_layer": "x", "layers": 1, "made_by": "test"}
    with writing(hub.engine) as connection:
        attachment = FormatAttachment.model_validate({"files": entries, **told})
        return catalog.attach_format(connection, version, SHELF, attachment, ("ada", now, now + MONTH))


def collected(hub: Hub, now: datetime) -> int:
    with writing(hub.engine) as connection:
        catalog.drop_formats(connection, now)
        return len(catalog.choose_leaving(connection, now, 100))


def test_a_format_comes_stays_and_goes(database_url: str) -> None:
    with made_hub(database_url, MemoryStore()) as hub:
        hub.publish()
        wanted = catalog.AdapterFilter(attached="lora")
        with reading(hub.engine) as connection:
            version = catalog.resolve(connection, AdapterRef(adapter=AdapterName.parse("demo/arithmetic")))
            published = measure(connection, "demo").bytes
        first, second = attach(hub, version, b"one"), attach(hub, version, b"three")
        with reading(hub.engine) as connection:
            assert catalog.list_formats(connection, version) == (second,)
            assert [view.adapter for view in catalog.list_adapters(connection, 10, wanted=wanted).adapters] == ["demo/arithmetic"]
            assert measure(connection, "demo").bytes == published + second.size
            assert catalog.count_formats(connection, NOW + MONTH) == (1, second.size, 1)
        with pytest.raises(InvalidRequest, match="not kept"):
            attach(hub, version, b"x", digest=f"sha256:{5:064x}")
        with writing(hub.engine) as connection:
            assert catalog.keep_format(connection, version, second, NOW + 2 * MONTH)
            assert not catalog.keep_format(connection, version, first, NOW + 3 * MONTH)
            with pytest.raises(NotFound):
                catalog.detach_format(connection, version, ("mlx", "float32"), NOW)


def test_what_is_over_goes_with_the_next_collection(database_url: str) -> None:
    with made_hub(database_url, MemoryStore()) as hub:
        hub.publish()
        with reading(hub.engine) as connection:
            version = catalog.resolve(connection, AdapterRef(adapter=AdapterName.parse("demo/arithmetic")))
        old, kept = attach(hub, version, b"one"), attach(hub, version, b"three")
        assert collected(hub, NOW + MONTH - timedelta(days=1)) == len(old.files)  # the upload's own time is over, and nothing names them
        with writing(hub.engine) as connection:
            assert catalog.keep_format(connection, version, kept, NOW + 2 * MONTH)
        assert collected(hub, NOW + 2 * MONTH - timedelta(days=1)) == len(old.files)  # chosen before, and not deleted yet
        assert collected(hub, NOW + 2 * MONTH) == len(old.files) + len(kept.files)
        with reading(hub.engine) as connection:
            assert catalog.list_formats(connection, version) == ()


# Two at once


def test_who_attaches_again_and_who_renews_do_not_wait_in_a_circle(database_url: str) -> None:
    with made_hub(database_url, MemoryStore()) as hub, ThreadPoolExecutor(1) as other:
        hub.publish()
        with reading(hub.engine) as connection:
            version = catalog.resolve(connection, AdapterRef(adapter=AdapterName.parse("demo/arithmetic")))
        first = attach(hub, version, b"one")
        with writing(hub.engine) as connection:
            renewed = update(DERIVED_FORMATS).values(kept_until=NOW + 2 * MONTH).returning(DERIVED_FORMATS.c.holder)
            connection.execute(renewed)
            again = other.submit(attach_stored, hub, version, first)
            time.sleep(LONG_ENOUGH_TO_WAIT_FOR_A_LOCK_SECONDS)
            assert catalog.keep_format(connection, version, first, NOW + 2 * MONTH)
        assert again.result(timeout=20).files == first.files


def attach_stored(hub: Hub, version: VersionView, stored: AttachedFormat) -> AttachedFormat:
    told = stored.model_dump(include=set(FormatAttachment.model_fields))
    with writing(hub.engine) as connection:
        return catalog.attach_format(connection, version, SHELF, FormatAttachment.model_validate(told), ("ada", NOW, NOW + MONTH))


def test_an_adapter_that_is_deleted_meanwhile_is_not_found(database_url: str) -> None:
    with made_hub(database_url, MemoryStore()) as hub, ThreadPoolExecutor(1) as other:
        files = made.lora(made.factors(made.publish(hub)))
        with TestClient(hub.app, headers=hub.bearer("write"), raise_server_exceptions=False) as client:
            made.send(client, files)
            with writing(hub.engine) as connection:
                catalog.delete_adapter(connection, AdapterName.parse("demo/x"), NOW + MONTH)
                url = "/api/v1/adapters/demo/x/versions/1/formats/lora/float32"
                answer = other.submit(client.put, url, json=made.attachment(files))
                time.sleep(LONG_ENOUGH_TO_WAIT_FOR_A_LOCK_SECONDS)
            found = answer.result(timeout=20)
            assert (found.status_code, found.json()["code"]) == (404, "adapter_not_found")
