"""What was deleted or detached counts in its namespace until it is collected: on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from hub import catalog
from hub.catalog.quotas import find_excess, measure, set_quota
from hub.collection import Collector
from hub.objects import MemoryStore
from infra.database import reading, writing
from tests.databases import noted_statements
from tests.hub.serving import CONFIG, NOW, Hub, made_hub
from wegeft.contracts.adapter import AdapterName, AdapterRef, FileEntry
from wegeft.contracts.errors import AdapterNotFound, QuotaExceeded
from wegeft.contracts.formats import FormatAttachment
from wegeft.contracts.quotas import Amounts, QuotaLimits

DAY = timedelta(days=1)
SIZE = 1000
ONE = SIZE + len(CONFIG)


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    with made_hub(database_url, MemoryStore()) as hub:
        yield hub


def used(hub: Hub, namespace: str = "demo") -> Amounts:
    with reading(hub.engine) as connection:
        return measure(connection, namespace)


def delete(hub: Hub, name: str) -> None:
    with writing(hub.engine) as connection:
        catalog.delete_adapter(connection, AdapterName.parse(name), NOW + DAY)


def limit(hub: Hub, size: int) -> None:
    with writing(hub.engine) as connection:
        set_quota(connection, "demo", QuotaLimits(bytes=size))


def collect(hub: Hub, after: timedelta) -> int:
    return Collector(engine=hub.engine, store=hub.store).collect(NOW + after, 100).bytes


def test_who_publishes_and_deletes_in_a_loop_fills_no_more_than_the_quota(hub: Hub) -> None:
    limit(hub, 3 * SIZE + len(CONFIG))
    for number in range(3):
        hub.publish(f"job:{number}", "Demo/one", bytes([number]) * SIZE)
        delete(hub, "demo/one")
    with pytest.raises(QuotaExceeded, match=f"{3 * SIZE} of them are of what was deleted") as caught:
        hub.publish("job:4", "Demo/one", b"4" * SIZE)
    assert caught.value.problems[0].value == str(4 * SIZE + len(CONFIG))
    assert used(hub) == Amounts(bytes=0, adapters=1, versions=0, deleted_bytes=3 * SIZE + len(CONFIG))
    assert used(hub, "dem_") == Amounts(bytes=0, adapters=0, versions=0)
    collect(hub, DAY - timedelta(seconds=1))
    assert used(hub).deleted_bytes > 0, "they are stored still"
    assert collect(hub, DAY) > 3 * SIZE
    assert used(hub).deleted_bytes == 0
    assert hub.publish("job:9", "demo/one", b"9" * SIZE) == 4


def test_what_is_named_again_counts_once(hub: Hub) -> None:
    hub.publish("job:1", "demo/one", b"a" * SIZE)
    hub.publish("job:2", "demo/two", b"a" * SIZE)
    delete(hub, "demo/one")
    assert (used(hub).bytes, used(hub).deleted_bytes) == (ONE, 0), "another adapter has the same bytes"
    delete(hub, "demo/two")
    assert (used(hub).bytes, used(hub).deleted_bytes) == (0, ONE)
    hub.publish("job:3", "demo/two", b"a" * SIZE)
    assert (used(hub).bytes, used(hub).deleted_bytes) == (ONE, 0)


def test_what_others_need_is_theirs_once_it_is_over(hub: Hub) -> None:
    hub.publish("job:1", "demo/one", b"a" * SIZE)
    hub.publish("job:2", "acme/one", b"a" * SIZE)
    delete(hub, "demo/one")
    assert used(hub).deleted_bytes == ONE
    assert collect(hub, DAY) == 0
    assert (used(hub).deleted_bytes, used(hub, "acme").bytes) == (0, ONE)


def attach(hub: Hub, content: bytes) -> None:
    entries = [FileEntry(path=name, digest=hub.put(content + name.encode()), size=len(content) + 1) for name in "ab"]
    told = {"base_model": "org/base", "largest_error": 1e-7, "largest_error_layer": "x", "layers": 1, "made_by": "test"}
    with writing(hub.engine) as connection:
        version = catalog.resolve(connection, AdapterRef.parse("demo/one"))
        attachment = FormatAttachment.model_validate({"files": entries, **told})
        catalog.attach_format(connection, version, ("lora", "float32"), attachment, ("ada", NOW, NOW + 30 * DAY))


def test_formats_that_are_replaced_and_detached_count_as_long_as_they_are_stored(hub: Hub) -> None:
    """They go as soon as nobody has sent them lately, which is when their sender could send others."""
    hub.publish("job:1", "demo/one", b"a" * SIZE)
    for content in (b"1" * 49, b"2" * 49, b"2" * 49):
        attach(hub, content)
    assert (used(hub).bytes, used(hub).deleted_bytes) == (ONE + 100, 100)
    with writing(hub.engine) as connection:
        catalog.detach_format(connection, catalog.resolve(connection, AdapterRef.parse("demo/one")), ("lora", "float32"), NOW)
    assert (used(hub).bytes, used(hub).deleted_bytes) == (ONE, 200)
    assert collect(hub, DAY - timedelta(seconds=1)) == 0
    assert used(hub).deleted_bytes == 200
    assert collect(hub, DAY) == 200
    assert used(hub).deleted_bytes == 0


def test_formats_that_a_collection_drops_count_until_their_bytes_go(hub: Hub) -> None:
    hub.publish("job:1", "demo/one", b"a" * SIZE)
    attach(hub, b"1" * 49)
    assert Collector(engine=hub.engine, store=hub.store).collect(NOW, 100, spares_formats=False).bytes == 0
    assert used(hub).deleted_bytes == 100
    collect(hub, DAY)
    assert used(hub).deleted_bytes == 0


def test_the_quota_tells_what_was_deleted(hub: Hub) -> None:
    hub.publish("job:1", "demo/one", b"a" * SIZE)
    with TestClient(hub.app, headers=hub.bearer("admin")) as client:
        body = {"name": "one", "organization": "demo"}
        assert client.request("DELETE", "/api/repos/delete", json=body).status_code == 200
        told = client.get("/api/v1/namespaces/demo/quota").json()
    assert told["used"] == {"bytes": 0, "adapters": 1, "versions": 0, "deleted_bytes": ONE}


@pytest.mark.parametrize(
    ("limits", "coming", "over"),
    [
        ({}, {"bytes": 1 << 60}, []),
        ({"bytes": 100}, {"bytes": 60}, []),
        ({"bytes": 100}, {"bytes": 61}, ["bytes"]),
        ({"bytes": 39}, {}, ["bytes"]),
        ({"adapters": 2, "versions": 3}, {"adapters": 1, "versions": 1}, ["adapters", "versions"]),
        ({"adapters": 3, "versions": 4}, {"adapters": 1, "versions": 1}, []),
    ],
)
def test_what_is_over_a_limit(limits: dict[str, int], coming: dict[str, int], over: list[str]) -> None:
    """Deleted bytes count as the others do."""
    used_up = Amounts(bytes=30, adapters=2, versions=3, deleted_bytes=10)
    found = find_excess(QuotaLimits(**limits), used_up, Amounts.model_validate({"bytes": 0, "adapters": 0, "versions": 0, **coming}))
    assert [problem.path for problem in found] == over
    assert all("10 of them" in (problem.hint or "") for problem in found if problem.path == "bytes")


def test_publishing_deleting_and_collecting_at_the_same_moment_wait_in_no_circle(hub: Hub) -> None:
    """Adapters that share their bytes, and a quota that all count in."""
    limit(hub, 4 * ONE)

    def act(number: int) -> None:
        name = f"demo/adapter{number % 3}"
        with suppress(QuotaExceeded, AdapterNotFound):
            hub.publish(f"job:{number}", name, bytes([number % 2]) * SIZE)
        with suppress(AdapterNotFound):
            delete(hub, name)
        collect(hub, timedelta(0))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(act, range(12)))
    assert used(hub).bytes == 0
    assert used(hub).deleted_bytes == 2 * SIZE + len(CONFIG)


def test_deleting_many_versions_asks_once_what_they_hold(hub: Hub) -> None:
    """Whatever their number: a statement for each would read what they share as often as there are versions."""
    counts = []
    for number in (2, 8):
        for version in range(number):
            hub.publish(f"job:{number}:{version}", f"demo/of-{number}", bytes([number, version]) * SIZE)
        with noted_statements(hub.engine) as statements:
            delete(hub, f"demo/of-{number}")
        counts.append(len([text for text in statements if "arrival" in text or "departed" in text.lower()]))
    assert counts[0] == counts[1] > 0
