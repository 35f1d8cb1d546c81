"""A commit whose answer was lost is answered with the version that it made, also where there is no room for another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from hub.catalog.quotas import set_quota
from hub.objects import MemoryStore
from infra.database import writing
from tests.hub.serving import made_hub
from tests.hub.test_hf_commits import Client, good
from wegeft.contracts.quotas import QuotaLimits


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore()) as hub:
        yield Client(hub).create()


def commit(client: Client, fill: float, key: str | None) -> httpx2.Response:
    body = "".join(json.dumps(line) + "\n" for line in good(fill))
    return client.ask("POST", f"{client.root}/commit/main", content=body, headers={"Idempotency-Key": key} if key else {})


def test_a_lost_answer_is_given_again_where_the_namespace_is_full(client: Client) -> None:
    """Whether or not others have published since; what is new has no room."""
    first = commit(client, 0.1, "one").json()["commitOid"]
    second = commit(client, 0.2, "two").json()["commitOid"]
    with writing(client.hub.engine) as connection:
        set_quota(connection, "demo", QuotaLimits(versions=2))
    for fill, key, made in ((0.1, "one", first), (0.2, "two", second)):
        again = commit(client, fill, key)
        assert (again.status_code, again.json()["commitOid"]) == (200, made)
    for fill, key in ((0.3, "three"), (0.3, None), (0.1, None)):
        refused = commit(client, fill, key)
        assert (refused.status_code, refused.json()["code"]) == (413, "quota_exceeded")
