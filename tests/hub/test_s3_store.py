"""What only a store across a network can do wrong: credentials, buckets, broken and silent connections; and presigned URLs."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
import urllib3

from hub import s3
from hub.objects import ObjectStore, read_verified
from hub.s3 import S3Access, open_store
from tests.conformance.stores import MIB, Pattern
from tests.http_clients import patient_request
from tests.hub.broken_wire import Wire, broken_wire
from tests.servers import S3Server, free_ports
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import DigestMismatch, InvalidSetting, StorageFull, StorageUnavailable

HELLO = digest_of(b"hello")


def access_to(server: S3Server, endpoint: str | None = None, secret: str | None = None) -> S3Access:
    return S3Access(endpoint=endpoint or server.endpoint, access_key=server.access_key, secret_key=secret or server.secret_key)


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


@pytest.fixture
def store(s3_server: S3Server, bucket: str) -> ObjectStore:
    return open_store(f"s3://{bucket}", access_to(s3_server))


@pytest.fixture
def wire(s3_server: S3Server) -> Iterator[Wire]:
    with broken_wire(s3_server.ports[0]) as wire:
        yield wire


@pytest.fixture
def wired(s3_server: S3Server, bucket: str, wire: Wire) -> ObjectStore:
    return open_store(f"s3://{bucket}", access_to(s3_server, f"http://127.0.0.1:{wire.port}"))


def calls(store: ObjectStore) -> list[Callable[[], object]]:
    return [
        lambda: store.put(HELLO, io.BytesIO(b"hello")),
        lambda: list(store.get(HELLO)),
        lambda: store.range(HELLO, 0, 1),
        lambda: store.has(HELLO),
        lambda: store.delete(HELLO),
    ]


def test_a_missing_bucket_is_made_when_the_store_is_opened(s3_server: S3Server) -> None:
    store = open_store("s3://made-by-us/a/prefix", access_to(s3_server))
    store.put(HELLO, io.BytesIO(b"hello"))
    with urllib3.PoolManager() as connections:
        found = [entry.object_name for entry in s3_server.client(connections).list_objects("made-by-us", recursive=True)]
    name = HELLO.removeprefix("sha256:")
    assert found == [f"a/prefix/sha256/{name[:2]}/{name[2:4]}/{name}"]
    open_store("s3://made-by-us/a/prefix", access_to(s3_server))


def test_two_prefixes_of_one_bucket_are_two_stores(s3_server: S3Server, bucket: str) -> None:
    one, other = (open_store(f"s3://{bucket}/{prefix}", access_to(s3_server)) for prefix in ("one", "other"))
    one.put(HELLO, io.BytesIO(b"hello"))
    assert other.has(HELLO) is None


def test_wrong_credentials_are_told_without_the_secret(s3_server: S3Server, bucket: str) -> None:
    wrong = access_to(s3_server, secret="planted-secret-value")
    assert "planted-secret-value" not in repr(wrong)
    with pytest.raises(StorageUnavailable, match="refuses our credentials") as caught:
        open_store(f"s3://{bucket}", wrong)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "planted-secret-value" not in f"{chain} {chain!r}"
        chain = chain.__cause__ or chain.__context__
    with pytest.raises(StorageUnavailable, match=r"InvalidAccessKeyId|AccessDenied"):
        open_store(f"s3://{bucket}", S3Access(endpoint=s3_server.endpoint, access_key="nobody", secret_key="x"))


def test_credentials_that_were_taken_away_are_told_by_every_method(s3_server: S3Server, bucket: str) -> None:
    store = open_store(f"s3://{bucket}", access_to(s3_server))
    store._client._provider = type(store._client._provider)(s3_server.access_key, "changed")  # type: ignore[attr-defined]
    for call in calls(store):
        with pytest.raises(StorageUnavailable, match="refuses our credentials"):
            call()


def test_a_bucket_that_went_away_is_not_an_empty_store(s3_server: S3Server, bucket: str, store: ObjectStore) -> None:
    store.put(HELLO, io.BytesIO(b"hello"))
    with urllib3.PoolManager() as connections:
        client = s3_server.client(connections)
        for entry in client.list_objects(bucket, recursive=True):
            client.remove_object(bucket, entry.object_name)
        client.remove_bucket(bucket)
    for call in calls(store)[:4]:
        with pytest.raises(StorageUnavailable, match="bucket"):
            call()


def test_a_server_that_is_not_there_is_told_soon() -> None:
    started = time.monotonic()
    with pytest.raises(StorageUnavailable, match="does not answer"):
        open_store("s3://bucket", S3Access(endpoint=f"http://127.0.0.1:{free_ports(1)[0]}", access_key="a", secret_key="b"))
    assert time.monotonic() - started < 15


def test_a_silent_server_is_given_up(s3_server: S3Server, bucket: str, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "READ_SECONDS", 0.3)
    store = open_store(f"s3://{bucket}", access_to(s3_server, f"http://127.0.0.1:{wire.port}"))
    wire.answer = b""
    for call in calls(store)[:2]:
        with pytest.raises(StorageUnavailable, match="does not answer"):
            call()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\nContent-Type: text/html\r\n\r\noops",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nContent-Type: text/html\r\n\r\noops",
        b"HTTP/1.1 403 No\r\nContent-Length: 9\r\nContent-Type: application/xml\r\n\r\n<nonsense",
        b"HTTP/1.1 403 No\r\nContent-Length: 2\r\nContent-Type: text/html\r\n\r\n\xff\xfe",
        b"SSH-2.0-OpenSSH\r\n",
        b"\x00\x01\x02",
    ],
)
def test_nonsense_is_told(wired: ObjectStore, wire: Wire, answer: bytes) -> None:
    wire.answer = answer
    for call in (calls(wired)[1], calls(wired)[0]):
        with pytest.raises(StorageUnavailable):
            call()


def test_a_full_server_is_told(wired: ObjectStore, wire: Wire) -> None:
    xml = b"<?xml version='1.0'?><Error><Code>XMinioStorageFull</Code><Message>full</Message></Error>"
    wire.answer = b"HTTP/1.1 507 Full\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s" % (len(xml), xml)
    with pytest.raises(StorageFull, match="no room"):
        wired.put(HELLO, io.BytesIO(b"hello"))


def test_a_download_that_breaks_is_taken_up_where_it_broke(wired: ObjectStore, wire: Wire) -> None:
    size = 6 * MIB
    digest = Pattern.digest(size)
    wired.put(digest, Pattern(size))
    wire.requests.clear()
    wire.cuts += [2 * MIB, 2 * MIB, 2 * MIB, 700_000]
    assert len(read_verified(wired, digest, size)) == size
    asked = [line for packet in wire.requests for line in packet.split(b"\r\n") if line.lower().startswith(b"range:")]
    assert len(asked) >= 2
    assert wire.cuts == []


def test_a_download_that_breaks_again_and_again_is_given_up(wired: ObjectStore, wire: Wire) -> None:
    size = 6 * MIB
    wired.put(Pattern.digest(size), Pattern(size))
    wire.cuts += [400_000] * 50
    with pytest.raises(StorageUnavailable):
        read_verified(wired, Pattern.digest(size), size)


def test_an_upload_is_repeated_when_its_answer_is_lost(wired: ObjectStore, wire: Wire, store: ObjectStore) -> None:
    wire.cuts += [10]
    wired.put(HELLO, io.BytesIO(b"hello"))
    assert read_verified(store, HELLO, 10) == b"hello"


def test_an_upload_of_parts_goes_on_when_answers_are_lost(wired: ObjectStore, wire: Wire, store: ObjectStore) -> None:
    size = 20 * MIB

    def cut(left: int) -> None:
        if 0 < left < 2 * MIB and not wire.cuts:
            wire.cuts.append(10)

    wired.put(Pattern.digest(size), Pattern(size, cut))
    assert len(read_verified(store, Pattern.digest(size), size)) == size


def test_an_upload_that_was_refused_leaves_no_parts(s3_server: S3Server, bucket: str, store: ObjectStore) -> None:
    with pytest.raises(DigestMismatch):
        store.put(HELLO, Pattern(20 * MIB))
    with urllib3.PoolManager() as connections:
        client = s3_server.client(connections)
        assert not client._list_multipart_uploads(bucket).uploads
        assert not list(client.list_objects(bucket, recursive=True))


def test_a_presigned_url_serves_one_blob_to_anyone(store: ObjectStore) -> None:
    store.put(HELLO, io.BytesIO(b"hello"))
    url = store.presign(HELLO, 60)
    assert url is not None
    assert patient_request("GET", url).content == b"hello"
    assert patient_request("GET", url.replace(HELLO[-6:], "000000")).status_code == 403
    assert patient_request("GET", urlsplit(url)._replace(query="").geturl()).status_code == 403


def test_a_presigned_url_expires(store: ObjectStore) -> None:
    store.put(HELLO, io.BytesIO(b"hello"))
    url = store.presign(HELLO, 1)
    assert url is not None
    deadline = time.monotonic() + 20
    while patient_request("GET", url).status_code != 403:
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:9000", "ftp://host", "http://", "http://user:planted@host", "http://host/path"])
def test_a_wrong_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        open_store("s3://bucket", S3Access(endpoint=endpoint, access_key="a", secret_key="b"))
    assert caught.value.problems[0].path == "s3_endpoint"
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("bucket", ["a", "Upper_Case!", "a..b", "x" * 80])
def test_a_wrong_bucket_name_is_refused(s3_server: S3Server, bucket: str) -> None:
    with pytest.raises((InvalidSetting, StorageUnavailable)):
        open_store(f"s3://{bucket}", access_to(s3_server))
