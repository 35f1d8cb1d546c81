"""What nobody needs is deleted, and nothing else: on SQLite and PostgreSQL, against races, and after a kill at any step."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url
from starlette.testclient import TestClient

from hub import catalog
from hub.collection import Collector
from hub.folder_store import FolderStore
from hub.intake import Intake
from hub.objects import MemoryStore, ObjectStore
from infra.database import reading, writing
from tests.databases import open_database
from tests.hub.serving import CONFIG, WEIGHTS, made_hub
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.collection import Collected, CollectionPlan
from wegeft.contracts.errors import StorageUnavailable

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
KEEP_SECONDS = 3600.0
LATER = NOW + timedelta(seconds=KEEP_SECONDS + 1)
RACE_SECONDS = 1.5


def send(engine: Engine, store: ObjectStore, content: bytes, holder: str = "upload:x", keep_seconds: float = KEEP_SECONDS) -> bool:
    """Send bytes as a holder; return whether they were kept."""
    intake = Intake(engine=engine, store=store, clock=lambda: NOW, keep_seconds=keep_seconds)
    size = intake.store_bytes(digest_of(content), io.BytesIO(content))
    with writing(engine) as connection:
        return intake.own(connection, digest_of(content), size, holder)


def name(engine: Engine, content: bytes, holder: str = "job:x") -> bool:
    """Need bytes for ever; return whether they are there."""
    with writing(engine) as connection:
        return not catalog.hold(connection, holder, [digest_of(content)], None)


def had(engine: Engine, content: bytes, holder: str = "upload:x") -> bool:
    with reading(engine) as connection:
        return bool(catalog.find_had(connection, holder, [digest_of(content)]))


def collect(engine: Engine, store: ObjectStore, now: datetime, limit: int = 100) -> Collected:
    return Collector(engine=engine, store=store).collect(now, limit)


def test_what_nobody_needs_goes_when_its_time_is_over(engine: Engine) -> None:
    store = MemoryStore()
    for content in (b"named", b"unnamed!"):
        assert send(engine, store, content)
    assert name(engine, b"named")
    assert collect(engine, store, NOW + timedelta(seconds=KEEP_SECONDS - 1)) == Collected(blobs=0, bytes=0, is_done=True)
    plan = Collector(engine=engine, store=store).plan(LATER)
    assert (plan.stored_blobs, plan.stored_bytes, plan.unheld_blobs, plan.unheld_bytes) == (2, 13, 1, 8)
    assert [(blob.digest, blob.size) for blob in plan.first] == [(digest_of(b"unnamed!"), 8)]
    assert store.has(digest_of(b"unnamed!")) == 8
    assert collect(engine, store, LATER) == Collected(blobs=1, bytes=8, is_done=True)
    assert (store.has(digest_of(b"named")), store.has(digest_of(b"unnamed!"))) == (5, None)
    assert (had(engine, b"named"), had(engine, b"unnamed!"), name(engine, b"unnamed!")) == (True, False, False)


def test_what_was_deleted_can_be_sent_again(engine: Engine) -> None:
    store = MemoryStore()
    assert send(engine, store, b"x")
    collect(engine, store, LATER)
    assert send(engine, store, b"x", "upload:y")
    assert (had(engine, b"x", "upload:y"), had(engine, b"x")) == (True, False)
    assert name(engine, b"x")
    assert collect(engine, store, LATER).blobs == 0
    assert store.has(digest_of(b"x")) == 1


def test_an_upload_that_never_ended_leaves_nothing(engine: Engine) -> None:
    """Its bytes may lie in the store though nobody noted that they had all come."""
    store = MemoryStore()
    Intake(engine=engine, store=store, clock=lambda: NOW, keep_seconds=KEEP_SECONDS).store_bytes(digest_of(b"x"), io.BytesIO(b"x"))
    assert not had(engine, b"x")
    assert collect(engine, store, NOW).blobs == 0
    assert collect(engine, store, LATER).blobs == 1
    assert store.has(digest_of(b"x")) is None


def test_what_came_too_slowly_is_not_lost_track_of(engine: Engine) -> None:
    """Collected while it was on its way, it is neither taken for stored nor left behind."""
    store = MemoryStore()
    intake = Intake(engine=engine, store=store, clock=lambda: NOW, keep_seconds=KEEP_SECONDS)
    size = intake.store_bytes(digest_of(b"x"), io.BytesIO(b"x"))
    collect(engine, store, LATER)
    store.put(digest_of(b"x"), io.BytesIO(b"x"))
    with writing(engine) as connection:
        assert not intake.own(connection, digest_of(b"x"), size, "upload:x")
    assert not had(engine, b"x")
    assert collect(engine, store, LATER).blobs == 1
    assert store.has(digest_of(b"x")) is None


def test_more_than_one_go(engine: Engine) -> None:
    store = MemoryStore()
    for number in range(5):
        send(engine, store, bytes([number]))
    assert [collect(engine, store, LATER, 2) for _ in range(3)] == [
        Collected(blobs=2, bytes=2, is_done=False),
        Collected(blobs=2, bytes=2, is_done=False),
        Collected(blobs=1, bytes=1, is_done=True),
    ]


class BrokenStore(MemoryStore):
    """A store that is away."""

    def has(self, digest: str) -> int | None:
        raise StorageUnavailable


def test_a_store_that_is_away_changes_nothing_that_cannot_be_mended(engine: Engine) -> None:
    store, broken = MemoryStore(), BrokenStore()
    send(engine, store, b"x")
    with pytest.raises(StorageUnavailable):
        collect(engine, broken, LATER)
    assert not name(engine, b"x")
    assert collect(engine, store, LATER).blobs == 1


def test_nothing_vanishes_that_is_named_at_the_same_moment(engine: Engine) -> None:
    """Senders, namers and collectors at once, and no time in which anything is safe unnamed: whoever could name bytes has them."""
    store, contents = MemoryStore(), [b"a", b"b", b"c"]
    began, has_deleted = time.monotonic(), threading.Event()

    def goes_on() -> bool:
        """Until the race has lasted a while, and a collector that was starved on a busy machine has had its turn."""
        return time.monotonic() < began + (RACE_SECONDS if has_deleted.is_set() else 30)

    def send_and_name(worker: int) -> int:
        named = 0
        while goes_on():
            content = contents[named % len(contents)]
            if send(engine, store, content, f"upload:{worker}", keep_seconds=0) and name(engine, content, f"job:{worker}"):
                time.sleep(0.01)
                assert store.has(digest_of(content)) == 1
                with writing(engine) as connection:
                    catalog.let_go(connection, f"job:{worker}", NOW)
            named += 1
        return named

    def collect_always() -> int:
        deleted = 0
        while goes_on():
            deleted += collect(engine, store, NOW).blobs
            if deleted:
                has_deleted.set()
        return deleted

    with ThreadPoolExecutor(5) as pool:
        namers = [pool.submit(send_and_name, number) for number in range(3)]
        collectors = [pool.submit(collect_always) for _ in range(2)]
        assert all(namer.result(60) for namer in namers)
        assert sum(collector.result(60) for collector in collectors)
    collect(engine, store, NOW)
    assert [store.has(digest_of(content)) for content in contents] == [None] * 3


def test_who_sends_what_is_being_deleted_waits_and_has_it(engine: Engine) -> None:
    """The sender comes while the collector has locked the blob; afterwards its bytes are there."""
    is_deleting, may_go_on = threading.Event(), threading.Event()

    class SlowStore(MemoryStore):
        def delete(self, digest: str) -> None:
            is_deleting.set()
            assert may_go_on.wait(30)
            super().delete(digest)

    store = SlowStore()
    send(engine, store, b"x")
    with ThreadPoolExecutor(2) as pool:
        collected = pool.submit(collect, engine, store, LATER)
        assert is_deleting.wait(30)
        sent = pool.submit(send, engine, store, b"x", "upload:y")
        time.sleep(0.2)
        assert not sent.done()
        may_go_on.set()
        assert collected.result(30).blobs == 1
        assert sent.result(30)
    assert (store.has(digest_of(b"x")), name(engine, b"x")) == (1, True)


@pytest.mark.parametrize(
    ("database_url", "step"),
    [("sqlite", "chosen"), ("sqlite", "seized"), ("sqlite", "deleted"), ("postgresql", "deleted")],
    indirect=["database_url"],
)
def test_a_collector_may_die_at_any_step(database_url: str, step: str, tmp_path: Path) -> None:
    """What it had chosen cannot be named; the next one ends its work, or who sends the same bytes again takes them back."""
    engine, store = open_database(database_url), FolderStore(tmp_path / "blobs")
    for content in (b"x", b"y"):
        assert send(engine, store, content, keep_seconds=0)
    url = make_url(database_url).render_as_string(hide_password=False)
    command = [sys.executable, "-m", "tests.hub.dying_collector", url, str(tmp_path / "blobs"), step]
    died = subprocess.run(command, check=False, timeout=60, cwd=Path(__file__).parents[2])
    assert died.returncode == -9
    assert [name(engine, content) for content in (b"x", b"y")] == [False, False]
    assert send(engine, store, b"x")
    assert name(engine, b"x")
    assert collect(engine, store, NOW).blobs == 1
    assert [store.has(digest_of(content)) for content in (b"x", b"y")] == [1, None]
    engine.dispose()


def test_over_http_it_is_the_administrators(tmp_path: Path) -> None:
    """A look changes nothing; a published file stays."""
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore()) as hub, TestClient(hub.app) as http:
        for role in ("read", "write"):
            assert {http.request(method, "/api/v1/collection", headers=hub.bearer(role)).status_code for method in ("GET", "POST")} == {403}
        hub.publish()
        send(hub.engine, hub.store, b"old", keep_seconds=0)
        plans = [CollectionPlan.model_validate(http.get("/api/v1/collection", headers=hub.bearer("admin")).json()) for _ in range(2)]
        assert {(plan.stored_blobs, plan.unheld_blobs, plan.unheld_bytes) for plan in plans} == {(3, 1, 3)}
        assert http.post("/api/v1/collection", headers=hub.bearer("admin")).json() == {"blobs": 1, "bytes": 3, "is_done": True}
        assert hub.store.has(digest_of(b"old")) is None
        collect(hub.engine, hub.store, LATER + timedelta(days=3650))
        assert [hub.store.has(digest_of(content)) for content in (CONFIG, WEIGHTS)] == [len(CONFIG), len(WEIGHTS)]
