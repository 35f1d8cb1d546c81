"""The hub's HTTP API, through the real application."""

from __future__ import annotations

import hashlib
import http.client
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient

from hub.folder_store import FolderStore
from hub.objects import VERIFIED_FIRST_BYTES, MemoryStore
from hub.s3 import S3Access, open_store
from hub.serving import VERIFIED_RANGE_BYTES
from tests.hub.serving import CONFIG, MAX_BLOB_BYTES, WEIGHTS, Hub, listening, made_hub
from tests.servers import PostgresServer, S3Server
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterPage, AdapterView, VersionPage, VersionView, digest_of
from wegeft.contracts.errors import ErrorBody

API = "/api/v1"
FILE = f"{API}/adapters/demo/arithmetic/versions/1/files/{WEIGHTS_FILE}"
PROBLEM = "application/problem+json"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, to be copied: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("empty") / "hub.db"
    with made_hub(f"sqlite:///{path}", MemoryStore()):
        pass
    return path


@pytest.fixture
def hub(tmp_path: Path, empty_database: Path) -> Iterator[Hub]:
    shutil.copy(empty_database, tmp_path / "hub.db")
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", FolderStore(tmp_path / "blobs")) as hub:
        yield hub


@pytest.fixture
def client(hub: Hub) -> Iterator[TestClient]:
    with TestClient(hub.app, headers=hub.bearer("write")) as client:
        yield client


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a hub that holds demo/arithmetic@1, for tests that change nothing."""
    folder = tmp_path_factory.mktemp("published")
    with made_hub(f"sqlite:///{folder / 'hub.db'}", FolderStore(folder / "blobs")) as hub:
        hub.publish()
        with TestClient(hub.app, headers=hub.bearer("write")) as client:
            yield client


def problem(response: Any, status: int, code: str) -> ErrorBody:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    body = ErrorBody.model_validate(response.json())
    assert (body.status, body.code) == (status, code)
    assert body.request_id == response.headers["x-request-id"]
    return body


def rot(hub: Hub, tmp_path: Path, content: bytes, harmed: bytes) -> None:
    name = hashlib.sha256(content).hexdigest()
    path = tmp_path / "blobs" / "sha256" / name[:2] / name[2:4] / name
    path.chmod(0o600)
    path.write_bytes(harmed)


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


# Files


def test_a_file_is_served_with_what_a_cache_needs(published: TestClient) -> None:
    response = published.get(FILE)
    assert (response.status_code, response.content) == (200, WEIGHTS)
    headers = response.headers
    assert headers["etag"] == f'"{digest_of(WEIGHTS)}"'
    assert headers["content-length"] == str(len(WEIGHTS))
    assert headers["content-type"] == "application/vnd.safetensors"
    assert headers["accept-ranges"] == "bytes"
    assert headers["cache-control"] == "private, max-age=31536000, immutable"
    assert headers["content-disposition"] == f'attachment; filename="{WEIGHTS_FILE}"'
    assert headers["x-content-type-options"] == "nosniff"
    head = published.head(FILE)
    assert (head.status_code, head.content) == (200, b"")
    assert {name: value for name, value in head.headers.items() if name != "x-request-id"} == {
        name: value for name, value in headers.items() if name != "x-request-id"
    }


def test_an_alias_is_not_immutable(published: TestClient) -> None:
    response = published.get(f"{API}/adapters/demo/arithmetic/versions/latest/files/{CONFIG_FILE}")
    assert response.content == CONFIG
    assert response.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize("tag", ["{etag}", "W/{etag}", '"other", {etag}', "*"])
def test_what_is_known_is_not_sent_again(published: TestClient, tag: str) -> None:
    asked = {"If-None-Match": tag.format(etag=f'"{digest_of(WEIGHTS)}"')}
    for response in (published.get(FILE, headers=asked), published.head(FILE, headers=asked)):
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == f'"{digest_of(WEIGHTS)}"'


@pytest.mark.parametrize("tag", ["", '"other"', "other", digest_of(WEIGHTS)])
def test_another_tag_gets_the_file(published: TestClient, tag: str) -> None:
    assert published.get(FILE, headers={"If-None-Match": tag}).content == WEIGHTS


SIZE = len(WEIGHTS)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, SIZE - 1),
        ("bytes=-7", SIZE - 7, SIZE - 1),
        (f"bytes=-{SIZE * 2}", 0, SIZE - 1),
        (f"bytes=10-{SIZE * 2}", 10, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
    ],
)
def test_a_part_is_served(published: TestClient, asked: str, first: int, last: int) -> None:
    response = published.get(FILE, headers={"Range": asked})
    assert (response.status_code, response.content) == (206, WEIGHTS[first : last + 1])
    assert response.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
    assert response.headers["content-length"] == str(last - first + 1)
    assert response.headers["etag"] == f'"{digest_of(WEIGHTS)}"'


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0", "bytes=999999999999999999-"])
def test_a_part_beyond_the_end_cannot_be_served(published: TestClient, asked: str) -> None:
    response = published.get(FILE, headers={"Range": asked})
    assert (response.status_code, response.headers["content-type"]) == (416, "application/problem+json")
    assert (response.json()["code"], response.json()["status"]) == ("invalid_request", 416)  # a client that holds too much begins anew
    assert response.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked", ["bytes=9-3", "bytes=-", "bytes=a-b", "items=0-1", "bytes=0-1,5-6", "0-5", "bytes=" + "9" * 30 + "-", "bytes=٣-٤"]
)
def test_nonsense_for_a_range_gets_the_whole(published: TestClient, asked: str) -> None:
    assert published.get(FILE, headers=[(b"Range", asked.encode())]).content == WEIGHTS


def test_a_part_of_what_changed_is_the_whole(published: TestClient) -> None:
    same = {"Range": "bytes=0-9", "If-Range": f'"{digest_of(WEIGHTS)}"'}
    assert published.get(FILE, headers=same).status_code == 206
    assert published.get(FILE, headers=same | {"If-Range": '"other"'}).content == WEIGHTS


def test_a_part_of_a_large_file_is_served(client: TestClient, hub: Hub) -> None:
    content = b"0123456789abcdef" * (VERIFIED_RANGE_BYTES // 16 + 9)
    hub.publish(weights=content)
    response = client.get(FILE, headers={"Range": "bytes=5-2500000"})
    assert (response.status_code, response.content) == (206, content[5:2500001])


def test_a_part_of_an_empty_file_cannot_be_served(client: TestClient, hub: Hub) -> None:
    hub.publish(weights=b"")
    assert client.get(FILE).content == b""
    assert client.get(FILE, headers={"Range": "bytes=0-"}).status_code == 416


@pytest.mark.parametrize("asked", [{}, {"Range": "bytes=3-5"}])
def test_rot_in_a_small_file_is_told_and_not_served(client: TestClient, hub: Hub, tmp_path: Path, asked: dict[str, str]) -> None:
    hub.publish()
    rot(hub, tmp_path, WEIGHTS, b"x" + WEIGHTS[1:])
    response = client.get(FILE, headers=asked)
    problem(response, 502, "digest_mismatch")
    assert b"\x05\x06" not in response.content


def test_lost_bytes_are_the_stores_fault(client: TestClient, hub: Hub) -> None:
    hub.publish()
    hub.store.delete(digest_of(WEIGHTS))
    problem(client.get(FILE), 503, "storage_unavailable")


def test_rot_in_a_file_of_many_chunks_is_told_before_it_is_served(client: TestClient, hub: Hub, tmp_path: Path) -> None:
    content = bytes(5 << 20)
    hub.publish(weights=content)
    rot(hub, tmp_path, content, content[:-1] + b"x")
    for _ in range(2):
        problem(client.get(FILE), 502, "digest_mismatch")
    assert client.head(f"{API}/blobs/{digest_of(content)}").status_code == 404
    assert client.put(f"{API}/blobs/{digest_of(content)}", content=content).status_code == 201
    assert client.get(FILE).content == content


def test_rot_in_a_large_file_cuts_the_connection_and_is_told_to_who_asks_again(hub: Hub, tmp_path: Path) -> None:
    content = bytes(VERIFIED_FIRST_BYTES + 1)
    hub.publish(weights=content)
    rot(hub, tmp_path, content, content[:-1] + b"x")
    with listening(hub.app) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        connection.request("GET", FILE, headers=hub.bearer("read"))
        response = connection.getresponse()
        assert (response.status, response.length) == (200, len(content))
        received = io.BytesIO()
        with pytest.raises(http.client.IncompleteRead):
            received.write(response.read())
        connection.close()
        again = httpx2.get(url + FILE, headers=hub.bearer("read"), trust_env=False)
        assert (again.status_code, again.json()["code"]) == (502, "digest_mismatch")
        assert httpx2.get(url + f"{API}/adapters", headers=hub.bearer("read"), trust_env=False).status_code == 200


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
        httpx2.Client(base_url=server, headers=hub.bearer("write"), trust_env=False, timeout=60) as client,
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
