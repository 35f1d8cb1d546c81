"""Files over the hub's HTTP API: what caches need, parts of them, and what is told of rotten or lost bytes."""

from __future__ import annotations

import http.client
import io
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from hub.objects import VERIFIED_FIRST_BYTES
from hub.serving import VERIFIED_RANGE_BYTES
from tests.http_clients import patient_request
from tests.hub.api_answers import API, FILE, problem, rot
from tests.hub.serving import CONFIG, WEIGHTS, Hub, listening
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, digest_of


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
        again = patient_request("GET", url + FILE, headers=hub.bearer("read"))
        assert (again.status_code, again.json()["code"]) == (502, "digest_mismatch")
        assert patient_request("GET", url + f"{API}/adapters", headers=hub.bearer("read")).status_code == 200
