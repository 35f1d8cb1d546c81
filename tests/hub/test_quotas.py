"""Quotas: what counts, what is refused, and that publishers at the same moment do not get past them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from hub import catalog
from hub.catalog.quotas import check_room, find_quota, measure, set_quota
from hub.objects import MemoryStore
from infra.auth import create_token
from infra.database import reading, writing
from tests.hub.serving import CONFIG, NOW, Hub, made_hub
from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.errors import QuotaExceeded
from wegeft.contracts.quotas import Amounts, QuotaLimits


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    """On SQLite and on PostgreSQL."""
    with made_hub(database_url, MemoryStore()) as hub:
        yield hub


@pytest.fixture
def small(tmp_path: Any) -> Iterator[Hub]:
    """On SQLite alone."""
    with made_hub(f"sqlite:///{tmp_path / 'a.db'}", MemoryStore()) as hub:
        yield hub


def limit(hub: Hub, namespace: str = "demo", **limits: int) -> None:
    with writing(hub.engine) as connection:
        set_quota(connection, namespace, QuotaLimits(**limits))


def used(hub: Hub, namespace: str = "demo") -> Amounts:
    with reading(hub.engine) as connection:
        return measure(connection, namespace)


def test_shared_bytes_count_once(hub: Hub) -> None:
    """In a namespace; another one counts them again, and names that only begin alike are others."""
    hub.publish("job:1", "demo/one", b"a" * 100)
    hub.publish("job:2", "demo/one", b"a" * 100)
    hub.publish("job:3", "Demo/two", b"b" * 10)
    hub.publish("job:4", "demo-2/one", b"a" * 100)
    hub.publish("job:5", "dem_o/one", b"c")
    assert used(hub) == used(hub, "DEMO") == Amounts(bytes=110 + len(CONFIG), adapters=2, versions=3)
    assert used(hub, "demo-2").bytes == 100 + len(CONFIG)
    assert used(hub, "nobodys") == Amounts(bytes=0, adapters=0, versions=0)


@pytest.mark.parametrize(
    ("limits", "path", "says"),
    [
        ({"bytes": 150 + len(CONFIG)}, "bytes", f"{200 + len(CONFIG)} used of {150 + len(CONFIG)}"),
        ({"adapters": 1}, "adapters", "2 used of 1"),
        ({"versions": 1}, "versions", "2 used of 1"),
        ({"bytes": 0}, "bytes", "used of 0"),
    ],
)
def test_what_is_over_a_quota_is_refused_whole(small: Hub, limits: dict[str, int], path: str, says: str) -> None:
    """With what is used and what may be; nothing of it stays, and what was there does."""
    small.publish("job:1", "demo/one", b"a" * 100)
    before = used(small)
    limit(small, **limits)
    with pytest.raises(QuotaExceeded) as caught:
        small.publish("job:2", "demo/two", b"b" * 100)
    assert path in [problem.path for problem in caught.value.problems]
    assert says in str(caught.value)
    assert used(small) == before
    assert small.publish("job:1", "demo/one", b"a" * 100) == 1
    limit(small)
    assert small.publish("job:2", "demo/two", b"b" * 100) == 1


@pytest.mark.parametrize(
    ("limits", "name", "size", "is_refused"),
    [
        ({}, "demo/two", 1 << 40, False),
        ({"bytes": 1000}, "demo/one", 0, False),
        ({"bytes": 1000}, "demo/one", 5000, True),
        ({"bytes": 10}, "demo/one", 0, True),
        ({"adapters": 1}, "demo/one", 0, False),
        ({"adapters": 1}, "demo/two", 0, True),
        ({"versions": 1}, "demo/one", 0, True),
        ({"versions": 2}, "demo/one", 0, False),
    ],
)
def test_before_bytes_are_taken_in(small: Hub, limits: dict[str, int], name: str, size: int, is_refused: bool) -> None:
    """By what they would add at most."""
    small.publish("job:1", "demo/one", b"a" * 100)
    limit(small, **limits)
    with reading(small.engine) as connection:
        if is_refused:
            with pytest.raises(QuotaExceeded):
                check_room(connection, AdapterName.parse(name), size)
        else:
            check_room(connection, AdapterName.parse(name), size)


def test_publishers_at_the_same_moment(hub: Hub) -> None:
    """Twelve for three places: three get one."""
    limit(hub, versions=3)

    def publish(number: int) -> int:
        try:
            return hub.publish(f"job:{number}", f"demo/adapter{number % 4}", bytes([number]) * 50)
        except QuotaExceeded:
            return 0

    with ThreadPoolExecutor(6) as pool:
        published = [number for number in pool.map(publish, range(12)) if number]
    assert (len(published), used(hub).versions) == (3, 3)


def test_quotas_over_http(small: Hub) -> None:
    """An administrator sets them, members see theirs, and others hear of nothing."""
    with writing(small.engine) as connection:
        tokens = {name: create_token(connection, name, "write", NOW)[1] for name in ("ada", "bob")}
        catalog.claim(connection, "acme", catalog_caller(connection, tokens["ada"]), NOW, is_private_by_default=True)
    address = "/api/v1/namespaces/Acme/quota"
    with TestClient(small.app) as client:

        def ask(headers: dict[str, str], method: str = "GET", body: Any = None, path: str = address) -> tuple[int, Any]:
            answer = client.request(method, path, headers=headers, json=body)
            return answer.status_code, answer.json()

        ada, bob = ({"Authorization": f"Bearer {tokens[name]}"} for name in ("ada", "bob"))
        assert ask(small.bearer("admin"), "PUT", {"bytes": 5, "versions": 7})[1]["limits"] == {"bytes": 5, "adapters": None, "versions": 7}
        assert ask(ada)[1]["limits"]["bytes"] == 5
        assert ask(bob)[0] == ask(bob, path="/api/v1/namespaces/unknown/quota")[0] == 404
        assert ask(ada, "PUT", {"bytes": 6})[0] == 403
        for body in ({"bytes": -1}, {"bytes": 2**63}, {"adapters": 1.5}, {"versions": "many"}, {"files": 1}, []):
            assert ask(small.bearer("admin"), "PUT", body)[0] == 422
        assert ask(small.bearer("admin"), "PUT", {}, "/api/v1/namespaces/a--b/quota")[0] == 422
    with reading(small.engine) as connection:
        assert find_quota(connection, "acme").limits.versions == 7


def catalog_caller(connection: Any, token: str) -> Any:
    """Who holds a token."""
    from infra.auth import authenticate

    return authenticate(connection, token, NOW)
