"""Whose adapters these are, in the Hugging Face dialect: who writes, who sees, who deletes, and what is left then."""

from __future__ import annotations

from datetime import timedelta

from hub import catalog
from hub.catalog.quotas import set_quota
from hub.hf_views import EMPTY_COMMIT
from infra.auth import Role, create_token
from infra.database import reading, writing
from tests.hub.hf_clients import sound_files
from tests.hub.serving import NOW
from tests.hub.test_hf_commits import HEADER, Client, client, file, good, hub, newest, stored
from wegeft.contracts.adapter import WEIGHTS_FILE, digest_of
from wegeft.contracts.errors import QuotaExceeded
from wegeft.contracts.quotas import QuotaLimits

__all__ = ["client", "hub", "stored"]


WRITES = [
    ("POST", "/api/repos/create", {"name": "x", "organization": "demo"}),
    ("DELETE", "/api/repos/delete", {"name": "x", "organization": "demo"}),
    ("POST", "ROOT/preupload/main", {"files": []}),
    ("POST", "ROOT/commit/main", HEADER),
    ("POST", "/demo/x.git/info/lfs/objects/batch", {"operation": "upload", "objects": []}),
    ("POST", "ROOT/tag/main", {"tag": "v1"}),
    ("DELETE", "ROOT/tag/v1", None),
    ("POST", "ROOT/branch/stable", {}),
    ("DELETE", "ROOT/branch/stable", None),
    ("GET", "ROOT/auth-check/write", None),
]


def test_nobody_writes_without_the_role(client: Client) -> None:
    for method, path, body in WRITES:
        address = path.replace("ROOT", client.root)
        assert client.ask(method, address, "read", json=body).status_code == 403, address
        assert client.ask(method, address, "", json=body).status_code == 401, address
    assert newest(client) == EMPTY_COMMIT


def test_a_private_one_is_there_for_its_owner_alone(client: Client) -> None:
    with writing(client.hub.engine) as connection:
        client.hub.tokens["stranger"] = create_token(connection, "mallory", Role.WRITE, NOW)[1]
    hidden = {"name": "hidden", "organization": "demo"}
    assert client.ask("POST", "/api/repos/create", json=hidden | {"private": True}).status_code == 200
    root = "/api/models/demo/hidden"
    assert client.ask("GET", root).json()["private"] is True
    assert Client(client.hub, "demo/hidden").commit(good()).status_code == 200
    for who in ("stranger", "read"):
        answers = [client.ask("GET", f"/api/models/demo/{name}", who) for name in ("absent", "hidden")]
        assert [(answer.status_code, answer.headers["x-error-code"]) for answer in answers] == [(404, "RepoNotFound")] * 2
        assert "demo/hidden" not in client.ask("GET", "/api/models", who).text
    assert Client(client.hub, "demo/hidden").commit(good(), role="stranger").status_code == 404
    assert client.ask("DELETE", "/api/repos/delete", "stranger", json=hidden).status_code == 404


def test_only_its_owner_or_an_admin_deletes_and_numbers_go_on(stored: Client) -> None:
    """Nothing is left of a deleted adapter, of its family or of what was measured but its numbers; its bytes go after their time."""
    assert stored.commit(good()).status_code == stored.commit([HEADER, file("README.md", b"a child")]).status_code == 200
    measured = {"metric": "accuracy", "value": 0.5, "dataset_digest": digest_of(b"rows")}
    assert stored.ask("POST", f"/api/v1/adapters/{stored.name}/versions/1/evaluations", json=measured).status_code == 201
    assert stored.ask("POST", f"{stored.root}/tag/main", json={"tag": "v1"}).status_code == 200
    with writing(stored.hub.engine) as connection:
        stored.hub.tokens["stranger"] = create_token(connection, "mallory", Role.WRITE, NOW)[1]
    assert stored.ask("DELETE", "/api/repos/delete", "stranger", json=stored.named).status_code == 403
    assert stored.ask("DELETE", "/api/repos/delete", json=stored.named).status_code == 200
    assert stored.ask("DELETE", "/api/repos/delete", "admin", json=stored.named).headers["x-error-code"] == "RepoNotFound"
    own = f"/api/v1/adapters/{stored.name}"
    for path in (stored.root, f"/{stored.name}/resolve/1/adapter_config.json", f"{own}/versions/1", own):
        assert stored.ask("GET", path).status_code == 404, path
    assert stored.commit(good()).status_code == 404
    stored.create()
    assert stored.commit(good()).status_code == 200
    assert stored.ask("GET", own).json()["latest_version"] == 3


def test_a_full_namespace_takes_no_bytes(client: Client) -> None:
    with writing(client.hub.engine) as connection:
        set_quota(connection, "demo", QuotaLimits(versions=0))
    refused = client.commit([*good(), file("README.md", b"never stored")])
    with writing(client.hub.engine) as connection:
        set_quota(connection, "demo", QuotaLimits())
    assert (refused.status_code, refused.json()["code"]) == (QuotaExceeded.http_status, "quota_exceeded")
    assert client.hub.store.has(digest_of(b"never stored")) is None
    assert newest(client) == EMPTY_COMMIT


def test_the_bytes_of_a_deleted_adapter_are_collected_after_their_time(client: Client) -> None:
    """And those that another adapter names stay."""
    kept = Client(client.hub, f"{client.name}-kept").create()
    assert client.commit([*good(0.25), file("README.md", b"gone")]).status_code == kept.commit(good(0.25)).status_code == 200
    assert client.ask("DELETE", "/api/repos/delete", "admin", json=client.named).status_code == 200
    late = NOW + timedelta(seconds=client.hub.services.keep_seconds)
    with reading(client.hub.engine) as connection:
        before, after = (catalog.list_unheld(connection, moment, 1000) for moment in (late - timedelta(seconds=1), late))
    digests = {digest for digest, _ in after}.difference(digest for digest, _ in before)
    assert digest_of(b"gone") in digests
    assert digest_of(sound_files(0.25)[WEIGHTS_FILE]) not in digests
