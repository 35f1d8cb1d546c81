"""The hub's HTTP API, through the real application."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from hub.s3 import S3Access, open_store
from tests.http_clients import patient_client
from tests.hub.api_answers import API, FILE, problem, rot
from tests.hub.serving import MAX_BLOB_BYTES, WEIGHTS, Hub, listening, made_hub
from tests.servers import PostgresServer, S3Server
from wegeft.contracts.adapter import CONFIG_FILE, AdapterPage, AdapterView, VersionPage, VersionView, digest_of

# Who may


READS = [
    ("GET", "/adapters"),
    ("GET", "/adapters/demo/arithmetic"),
    ("GET", "/adapters/demo/arithmetic/versions"),
    ("GET", "/adapters/demo/arithmetic/versions/1"),
    ("GET", f"/adapters/demo/arithmetic/versions/1/files/{CONFIG_FILE}"),
    ("HEAD", f"/adapters/demo/arithmetic/versions/1/files/{CONFIG_FILE}"),
]
WRITES = [
    ("HEAD", f"/blobs/{digest_of(b'x')}"),
    ("PUT", f"/blobs/{digest_of(b'x')}"),
    ("PUT", "/adapters/demo/arithmetic/aliases/production"),
    ("DELETE", "/adapters/demo/arithmetic/aliases/production"),
]


@pytest.mark.parametrize(("method", "path"), READS + WRITES)
def test_nobody_comes_in_without_a_token(hub: Hub, method: str, path: str) -> None:
    hub.publish()
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic abc"},
        {"Authorization": f"Bearer {hub.tokens['read']}x"},
    ):
        with TestClient(hub.app, headers=headers) as client:
            response = client.request(method, API + path)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_a_reader_may_not_write(hub: Hub, method: str, path: str) -> None:
    hub.publish()
    with TestClient(hub.app, headers=hub.bearer("read")) as client:
        assert client.request(method, API + path, json={"version": 1} if method == "PUT" else None).status_code == 403
    with TestClient(hub.app, headers=hub.bearer("write")) as client:
        assert client.head(f"{API}/blobs/{digest_of(b'x')}").status_code == 404


@pytest.mark.parametrize(("method", "path"), READS)
def test_a_reader_may_read(hub: Hub, method: str, path: str) -> None:
    hub.publish()
    with TestClient(hub.app, headers=hub.bearer("read")) as client:
        assert client.request(method, API + path).status_code == 200


# Blobs


def test_bytes_are_stored_once_and_found(client: TestClient, hub: Hub) -> None:
    digest = digest_of(b"hello")
    problem_free = client.head(f"{API}/blobs/{digest}")
    assert (problem_free.status_code, problem_free.content) == (404, b"")
    first = client.put(f"{API}/blobs/{digest}", content=b"hello")
    assert (first.status_code, first.json()) == (201, {"digest": digest, "size": 5})
    again = client.put(f"{API}/blobs/{digest}", content=b"hello")
    assert (again.status_code, again.json()) == (200, {"digest": digest, "size": 5})
    found = client.head(f"{API}/blobs/{digest}")
    assert (found.status_code, found.headers["content-length"], found.headers["etag"]) == (200, "5", f'"{digest}"')
    assert b"".join(hub.store.get(digest)) == b"hello"


def test_bytes_may_come_in_chunks_of_unknown_length(client: TestClient, hub: Hub) -> None:
    content = b"0123456789" * 1000
    response = client.put(f"{API}/blobs/{digest_of(content)}", content=iter([content[:7], content[7:5000], content[5000:]]))
    assert (response.status_code, response.json()["size"]) == (201, len(content))
    assert hub.store.has(digest_of(content)) == len(content)


def test_an_empty_blob_is_a_blob(client: TestClient, hub: Hub) -> None:
    assert client.put(f"{API}/blobs/{digest_of(b'')}", content=b"").json()["size"] == 0
    assert hub.store.has(digest_of(b"")) == 0


def test_who_knows_a_digest_alone_learns_nothing(client: TestClient, hub: Hub) -> None:
    """Not by looking, nor by sending other bytes, nor by how the right ones are taken; what is published everybody may know of."""
    digest = hub.put(b"somebody else's")
    other = {"Authorization": hub.bearer("admin")["Authorization"]}
    assert client.head(f"{API}/blobs/{digest}").status_code == 404
    problem(client.put(f"{API}/blobs/{digest}", content=b""), 422, "invalid_request")
    assert client.head(f"{API}/blobs/{digest}").status_code == 404
    assert client.put(f"{API}/blobs/{digest}", content=b"somebody else's").status_code == 201
    assert client.head(f"{API}/blobs/{digest}").status_code == 200
    assert client.head(f"{API}/blobs/{digest}", headers=other).status_code == 404
    hub.publish()
    assert client.head(f"{API}/blobs/{digest_of(WEIGHTS)}").status_code == 200


def test_other_bytes_than_named_are_the_senders_fault(client: TestClient, hub: Hub) -> None:
    body = problem(client.put(f"{API}/blobs/{digest_of(b'right')}", content=b"wrong"), 422, "invalid_request")
    assert digest_of(b"wrong") in str(body.problems[0])
    assert hub.store.has(digest_of(b"right")) is None


@pytest.mark.parametrize("digest", ["x", "sha256:", "sha256:" + "G" * 64, "sha512:" + "0" * 64, "sha256:" + "0" * 65])
def test_a_malformed_digest_is_refused(published: TestClient, digest: str) -> None:
    problem(published.put(f"{API}/blobs/{digest}", content=b"x"), 422, "invalid_reference")
    assert published.head(f"{API}/blobs/{digest}").status_code == 422


def test_a_blob_over_the_limit_is_refused(client: TestClient, hub: Hub) -> None:
    digest = digest_of(b"x")
    problem(client.put(f"{API}/blobs/{digest}", content=bytes(MAX_BLOB_BYTES + 1)), 413, "too_large")
    problem(client.put(f"{API}/blobs/{digest}", content=iter([bytes(MAX_BLOB_BYTES), b"x"])), 413, "too_large")
    assert hub.store.has(digest) is None


def test_storing_again_mends_rot(client: TestClient, hub: Hub, tmp_path: Path) -> None:
    digest = hub.put(b"whole")
    assert client.put(f"{API}/blobs/{digest}", content=b"whole").status_code == 201
    rot(hub, tmp_path, b"whole", b"whale")
    assert client.put(f"{API}/blobs/{digest}", content=b"whole").status_code == 200
    assert b"".join(hub.store.get(digest)) == b"whole"


# Adapters and versions


def test_what_is_published_is_answered(client: TestClient, hub: Hub) -> None:
    hub.publish("job:1", metrics={"eval_loss": 0.25})
    hub.publish("job:2", rank=16)
    listed = AdapterPage.model_validate(client.get(f"{API}/adapters").json())
    one = AdapterView.model_validate(client.get(f"{API}/adapters/demo/arithmetic").json())
    assert listed.adapters == (one,)
    assert (one.adapter, one.latest_version, one.rank, one.aliases) == ("demo/arithmetic", 2, 16, {"latest": 2})
    versions = VersionPage.model_validate(client.get(f"{API}/adapters/demo/arithmetic/versions").json()).versions
    assert [version.version for version in versions] == [2, 1]
    for selector, expected in (("1", versions[1]), ("2", versions[0]), ("latest", versions[0])):
        found = VersionView.model_validate(client.get(f"{API}/adapters/demo/arithmetic/versions/{selector}").json())
        assert found == expected
        assert digest_of(found.manifest.to_bytes()) == found.manifest_digest
    assert versions[1].metrics == {"eval_loss": 0.25}


def test_lists_come_in_pages(client: TestClient, hub: Hub) -> None:
    for number in range(5):
        hub.publish(f"job:{number}", f"demo/a{number}")
        hub.publish(f"job:v{number}", "demo/many")
    for path, key in (("/adapters", "adapters"), ("/adapters/demo/many/versions", "versions")):
        seen: list[str] = []
        params: dict[str, Any] = {"limit": 2}
        while True:
            page = client.get(API + path, params=params).json()
            seen += [entry["adapter"] if key == "adapters" else entry["version"] for entry in page[key]]
            if page["next_cursor"] is None:
                break
            params["after"] = page["next_cursor"]
        assert seen == (["demo/a0", "demo/a1", "demo/a2", "demo/a3", "demo/a4", "demo/many"] if key == "adapters" else [5, 4, 3, 2, 1])


def test_a_list_is_filtered_and_sorted(client: TestClient, hub: Hub) -> None:
    hub.publish("job:1", "demo/sums", base_model="org/tiny@abc")
    hub.publish("job:2", "demo/words", rank=16)
    hub.publish("job:3", "other/sums")

    def listed(**params: Any) -> list[str]:
        response = client.get(f"{API}/adapters", params=params)
        return [view.adapter for view in AdapterPage.model_validate(response.json()).adapters]

    assert listed(order="updated") == ["other/sums", "demo/words", "demo/sums"]
    assert listed(namespace="demo") == ["demo/sums", "demo/words"]
    assert listed(search="sums") == ["demo/sums", "other/sums"]
    assert listed(base_model="org/tiny") == ["demo/sums"]
    assert listed(rank=16, method="wegeft") == ["demo/words"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/adapters?order=downloads", 422, "invalid_request"),
        ("/adapters?rank=0", 422, "invalid_request"),
        ("/adapters?metric=loss", 422, "invalid_request"),
        ("/adapters?metric=loss%3Cnan", 422, "invalid_request"),
        ("/adapters?tag=%01", 422, "invalid_request"),
        ("/adapters?methd=lora", 422, "invalid_request"),
        ("/adapters/facets?order=name", 422, "invalid_request"),
        ("/adapters?search=%00", 422, "invalid_request"),
        ("/adapters?search=a+b+c+d+e+f+g+h+i", 422, "invalid_request"),
        ("/adapters/demo/unknown", 404, "adapter_not_found"),
        ("/adapters/demo/unknown/versions", 404, "adapter_not_found"),
        ("/adapters/demo/unknown/versions/1", 404, "adapter_not_found"),
        ("/adapters/demo/arithmetic/versions/2", 404, "version_not_found"),
        ("/adapters/demo/arithmetic/versions/production", 404, "alias_not_found"),
        (f"/adapters/demo/arithmetic/versions/2/files/{CONFIG_FILE}", 404, "version_not_found"),
        ("/adapters/demo/arithmetic/versions/1/files/README.md", 404, "file_not_found"),
        ("/adapters/demo/arithmetic/versions/1/files/../../../etc/passwd", 404, None),
        ("/adapters/demo/arithmetic/versions/1/files/..%2F..%2Fsecret", 404, "file_not_found"),
        ("/adapters/demo/arithmetic/versions/1/files/%00", 422, "invalid_request"),
        ("/adapters/demo/arithmetic/versions/0", 422, "invalid_reference"),
        ("/adapters/demo/arithmetic/versions/01", 422, "invalid_reference"),
        ("/adapters/demo/arithmetic/versions/1e3", 422, "invalid_reference"),
        ("/adapters/demo/arithmetic/versions/%00", 422, "invalid_request"),
        ("/adapters/demo/arithmetic/versions/99999999999999999999", 422, "invalid_reference"),
        ("/adapters/de--mo/arithmetic", 422, "invalid_reference"),
        ("/adapters/api/arithmetic", 422, "invalid_reference"),
        ("/adapters/demo/%F0%9F%98%80", 422, "invalid_reference"),
        ("/adapters/demo/a%00b", 422, "invalid_request"),
        ("/adapters?limit=0", 422, "invalid_request"),
        ("/adapters?limit=101", 422, "invalid_request"),
        ("/adapters?limit=x", 422, "invalid_request"),
        ("/adapters?after=nonsense", 422, "invalid_request"),
        ("/adapters?after=" + "x" * 1001, 422, "invalid_request"),
        ("/adapters/demo/arithmetic/versions?after=%00", 422, "invalid_request"),
    ],
)
def test_wrong_addresses_are_told_apart(published: TestClient, path: str, status: int, code: str | None) -> None:
    response = published.get(API + path)
    body = problem(response, status, code or response.json()["code"])
    assert body.problems
    assert "Traceback" not in response.text


def test_the_case_of_a_name_does_not_matter(published: TestClient) -> None:
    assert published.get(f"{API}/adapters/DEMO/Arithmetic/versions/1").json()["adapter"] == "demo/arithmetic"


# Aliases


def test_an_alias_moves_by_compare_and_set(client: TestClient, hub: Hub) -> None:
    hub.publish("job:1")
    hub.publish("job:2")
    path = f"{API}/adapters/demo/arithmetic/aliases/production"
    made = client.put(path, json={"version": 1, "expected": 0})
    assert (made.status_code, made.json()["aliases"]) == (200, {"production": 1, "latest": 2})
    assert client.get(f"{API}/adapters/demo/arithmetic/versions/production").json()["version"] == 1
    problem(client.put(path, json={"version": 2, "expected": 2}), 409, "alias_moved")
    assert client.put(path, json={"version": 2, "expected": 1}).json()["aliases"]["production"] == 2
    assert client.put(path, json={"version": 1, "expected": None}).json()["aliases"]["production"] == 1
    gone = client.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    problem(client.delete(path), 404, "alias_not_found")


@pytest.mark.parametrize(
    ("alias", "body", "status", "code"),
    [
        ("latest", {"version": 1}, 422, "invalid_request"),
        ("7", {"version": 1}, 422, "invalid_reference"),
        ("UPPER", {"version": 1}, 422, "invalid_reference"),
        ("ok", {"version": 2}, 404, "version_not_found"),
        ("ok", {"version": 0}, 422, "invalid_request"),
        ("ok", {"version": 10**12}, 422, "invalid_request"),
        ("ok", {"version": "one"}, 422, "invalid_request"),
        ("ok", {"version": 1, "force": True}, 422, "invalid_request"),
        ("ok", {}, 422, "invalid_request"),
        ("ok", [], 422, "invalid_request"),
        ("ok", None, 422, "invalid_request"),
    ],
)
def test_a_wrong_move_changes_nothing(published: TestClient, alias: str, body: Any, status: int, code: str) -> None:
    problem(published.put(f"{API}/adapters/demo/arithmetic/aliases/{alias}", json=body), status, code)
    assert published.get(f"{API}/adapters/demo/arithmetic").json()["aliases"] == {"latest": 1}


# The whole, on other parts


def test_the_same_on_postgresql_and_s3(postgres_server: PostgresServer, s3_server: S3Server) -> None:
    access = S3Access(endpoint=s3_server.endpoint, access_key=s3_server.access_key, secret_key=s3_server.secret_key)
    store = open_store(f"s3://{s3_server.new_bucket()}", access)
    url = postgres_server.new_database()
    content = bytes(range(256)) * 40_000
    with (
        made_hub(url, store) as hub,
        listening(hub.app) as server,
        patient_client(base_url=server, headers=hub.bearer("write")) as client,
    ):
        digest = digest_of(content)
        assert client.put(f"{API}/blobs/{digest}", content=content).json() == {"digest": digest, "size": len(content)}
        assert client.head(f"{API}/blobs/{digest}").headers["content-length"] == str(len(content))
        hub.publish(weights=content)
        assert client.get(FILE).content == content
        assert client.get(FILE, headers={"Range": "bytes=9000000-9000009"}).content == content[9000000:9000010]
        assert client.put(f"{API}/adapters/demo/arithmetic/aliases/ok", json={"version": 1}).status_code == 200
        store.delete(digest)
        problem(client.get(FILE), 503, "storage_unavailable")
    postgres_server.drop_database(url)


def test_every_route_is_described(hub: Hub) -> None:
    described = hub.app.openapi()["paths"]
    assert set(described[f"{API}/adapters/{{namespace}}/{{name}}/versions/{{selector}}/files/{{path}}"]) == {"get", "head"}
    assert set(described[f"{API}/blobs/{{digest}}"]) == {"head", "put"}
    operations = [operation["operationId"] for methods in described.values() for operation in methods.values()]
    assert len(operations) == len(set(operations))
