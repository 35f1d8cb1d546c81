"""Derived formats in SQL, on SQLite and on PostgreSQL: a row and its bytes come, stay and go together."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from hub import catalog
from hub.catalog.quotas import measure
from hub.objects import MemoryStore
from infra.database import reading, writing
from tests.hub.serving import NOW, Hub, made_hub
from wegeft.contracts.adapter import AdapterName, AdapterRef, FileEntry, VersionView
from wegeft.contracts.errors import InvalidRequest, NotFound
from wegeft.contracts.formats import AttachedFormat, FormatAttachment

MONTH = timedelta(days=30)
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
