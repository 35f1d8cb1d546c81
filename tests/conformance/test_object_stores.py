"""What every object store promises; the same suite over memory, a folder and a real S3 server.

State is set up and looked at behind the store's back, by ``Backend``, so that no method vouches for itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3

from hub.objects import CHUNK_BYTES, FolderStore, MemoryStore, ObjectStore, read_verified, stream_verified
from hub.s3 import S3Access, open_store
from tests.servers import S3Server
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import BlobNotFound, DigestMismatch, InvalidReference, TooLarge

ABSENT = digest_of(b"nobody ever stored this")
MIB = 1 << 20


@dataclass
class Backend:
    """A store under test, and the way around it."""

    store: ObjectStore
    write_raw: Callable[[str, bytes], None]
    read_raw: Callable[[str], bytes | None]
    list_raw: Callable[[], list[str]]
    """Everything that lies there, finished or not."""
    peak_bytes: int = 0
    """What it may hold in memory while a large blob passes through, where it does not keep blobs in memory by design."""
    url: str | None = None
    access: S3Access | None = None


def memory_backend() -> Backend:
    store = MemoryStore()
    return Backend(store, store._blobs.__setitem__, store._blobs.get, lambda: list(store._blobs))


def folder_backend(root: Path) -> Backend:
    def path_of(digest: str) -> Path:
        name = digest.partition(":")[2]
        return root / "sha256" / name[0:2] / name[2:4] / name

    def write(digest: str, content: bytes) -> None:
        path_of(digest).parent.mkdir(parents=True, exist_ok=True)
        path_of(digest).unlink(missing_ok=True)
        path_of(digest).write_bytes(content)

    def read(digest: str) -> bytes | None:
        return path_of(digest).read_bytes() if path_of(digest).exists() else None

    def everything() -> list[str]:
        return [str(path) for path in root.rglob("*") if path.is_file()]

    return Backend(FolderStore(root), write, read, everything, 4 * MIB, f"file://{root}")


def s3_backend(server: S3Server, connections: urllib3.PoolManager) -> Backend:
    bucket, client = server.new_bucket(), server.client(connections)
    access = S3Access(endpoint=server.endpoint, access_key=server.access_key, secret_key=server.secret_key)

    def key_of(digest: str) -> str:
        name = digest.partition(":")[2]
        return f"some/where/sha256/{name[0:2]}/{name[2:4]}/{name}"

    def write(digest: str, content: bytes) -> None:
        client.put_object(bucket, key_of(digest), io.BytesIO(content), len(content))

    def read(digest: str) -> bytes | None:
        is_there = any(entry.object_name == key_of(digest) for entry in client.list_objects(bucket, key_of(digest)))
        return client.get_object(bucket, key_of(digest)).data if is_there else None

    def everything() -> list[str]:
        return [entry.object_name for entry in client.list_objects(bucket, recursive=True)]

    url = f"s3://{bucket}/some/where"
    return Backend(open_store(url, access), write, read, everything, 40 * MIB, url, access)


LASTING = pytest.mark.parametrize("backend", ["folder", "s3"], indirect=True)
"""For promises that only a store outside of the process can make."""


@pytest.fixture(params=["memory", "folder", "s3"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    match request.param:
        case "memory":
            yield memory_backend()
        case "folder":
            yield folder_backend(tmp_path / "store")
        case _:
            with urllib3.PoolManager() as connections:
                yield s3_backend(request.getfixturevalue("s3_server"), connections)


class Pattern:
    """A long stream that is made while it is read."""

    def __init__(self, size: int, on_read: Callable[[int], None] | None = None) -> None:
        self._left, self._block, self._on_read = size, random.Random(7).randbytes(MIB), on_read  # whole blocks, counted from the end

    def read(self, length: int = -1) -> bytes:
        start = -self._left % MIB
        taken = self._block[start : start + min(self._left, MIB if length < 0 else length)]
        self._left -= len(taken)
        if self._on_read:
            self._on_read(self._left)
        return taken

    @classmethod
    def digest(cls, size: int) -> str:
        sha256, source = hashlib.sha256(), cls(size)
        while chunk := source.read(MIB):
            sha256.update(chunk)
        return f"sha256:{sha256.hexdigest()}"


def put(backend: Backend, content: bytes) -> str:
    digest = digest_of(content)
    assert backend.store.put(digest, io.BytesIO(content)) == len(content)
    return digest


CONTENTS = [b"", b"a", b"hello" * 1000, random.Random(1).randbytes(CHUNK_BYTES), random.Random(2).randbytes(2 * CHUNK_BYTES + 17)]


@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_what_is_put_is_what_lies_there(backend: Backend, content: bytes) -> None:
    digest = put(backend, content)
    assert backend.read_raw(digest) == content
    assert len(backend.list_raw()) == 1


@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_what_lies_there_is_what_is_read(backend: Backend, content: bytes) -> None:
    digest = digest_of(content)
    backend.write_raw(digest, content)
    chunks = list(backend.store.get(digest))
    assert b"".join(chunks) == content
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
    assert b"".join(stream_verified(backend.store, digest)) == content
    assert read_verified(backend.store, digest, len(content)) == content
    assert backend.store.has(digest) == len(content)


@pytest.mark.parametrize(("start", "length"), [(0, 0), (0, 1), (0, 10), (3, 4), (9, 1), (9, 100), (10, 1), (10, 0), (500, 7), (0, 10**12)])
def test_a_range_is_a_slice(backend: Backend, start: int, length: int) -> None:
    content = b"0123456789"
    backend.write_raw(digest_of(content), content)
    assert backend.store.range(digest_of(content), start, length) == content[start : start + length]


def test_a_range_of_an_empty_blob_is_empty(backend: Backend) -> None:
    backend.write_raw(digest_of(b""), b"")
    assert backend.store.range(digest_of(b""), 0, 5) == b""


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, -5)])
def test_a_negative_range_is_a_mistake_of_ours(backend: Backend, start: int, length: int) -> None:
    digest = put(backend, b"0123456789")
    with pytest.raises(ValueError, match="range"):
        backend.store.range(digest, start, length)


def test_an_absent_blob_is_not_found(backend: Backend) -> None:
    assert backend.store.has(ABSENT) is None
    with pytest.raises(BlobNotFound):
        next(backend.store.get(ABSENT))
    with pytest.raises(BlobNotFound):
        backend.store.range(ABSENT, 0, 1)
    with pytest.raises(BlobNotFound):
        backend.store.range(ABSENT, 0, 0)
    with pytest.raises(BlobNotFound):
        read_verified(backend.store, ABSENT, 10)
    with pytest.raises(BlobNotFound):
        next(stream_verified(backend.store, ABSENT))


def test_delete_forgets_and_may_be_repeated(backend: Backend) -> None:
    digest, other = put(backend, b"goes"), put(backend, b"stays")
    for _ in range(2):
        backend.store.delete(digest)
    assert backend.store.has(digest) is None
    assert backend.read_raw(digest) is None
    assert backend.read_raw(other) == b"stays"
    assert put(backend, b"goes") == digest
    assert backend.read_raw(digest) == b"goes"


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256:",
        "sha256:" + "g" * 64,
        "sha256:" + "A" * 64,
        "md5:" + "0" * 64,
        "sha256:../../../etc/passwd",
        ABSENT + "\n",
        ABSENT + "0",
    ],
)
def test_a_malformed_digest_never_reaches_the_store(backend: Backend, digest: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: backend.store.put(digest, io.BytesIO(b"x")),
        lambda: list(backend.store.get(digest)),
        lambda: backend.store.range(digest, 0, 1),
        lambda: backend.store.has(digest),
        lambda: backend.store.delete(digest),
        lambda: backend.store.set_aside(digest),
    ]
    for call in calls:
        with pytest.raises(InvalidReference):
            call()
    assert backend.list_raw() == []


def test_putting_again_changes_nothing(backend: Backend) -> None:
    digest = put(backend, b"once")
    before = backend.list_raw()
    assert put(backend, b"once") == digest
    assert backend.list_raw() == before
    assert backend.read_raw(digest) == b"once"


@pytest.mark.parametrize("size", [0, 5, 3 * MIB, 20 * MIB], ids=["empty", "small", "chunks", "parts"])
def test_wrong_bytes_leave_nothing(backend: Backend, size: int) -> None:
    with pytest.raises(DigestMismatch):
        backend.store.put(ABSENT, Pattern(size))
    assert backend.list_raw() == []
    assert backend.store.has(ABSENT) is None


@pytest.mark.parametrize("announced", [0, 4, 6, 10**9])
def test_a_wrong_size_leaves_nothing(backend: Backend, announced: int) -> None:
    with pytest.raises(DigestMismatch, match="size"):
        backend.store.put(digest_of(b"12345"), io.BytesIO(b"12345"), announced)
    assert backend.list_raw() == []


def test_a_right_size_is_accepted(backend: Backend) -> None:
    assert backend.store.put(digest_of(b"12345"), io.BytesIO(b"12345"), 5) == 5


def test_wrong_bytes_do_not_harm_what_is_there(backend: Backend) -> None:
    digest = put(backend, b"right")
    with pytest.raises(DigestMismatch):
        backend.store.put(digest, io.BytesIO(b"wrong"))
    assert backend.read_raw(digest) == b"right"


def test_putting_again_mends_a_rotten_blob(backend: Backend) -> None:
    digest = digest_of(b"whole")
    backend.write_raw(digest, b"rotten")
    put(backend, b"whole")
    assert backend.read_raw(digest) == b"whole"


@pytest.mark.parametrize("broken_after", [0, 3 * MIB, 18 * MIB])
def test_a_source_that_breaks_leaves_nothing(backend: Backend, broken_after: int) -> None:
    size = 20 * MIB

    def break_off(left: int) -> None:
        if size - left >= broken_after:
            raise ConnectionResetError("the sender went away")

    with pytest.raises(ConnectionResetError, match="sender"):
        backend.store.put(Pattern.digest(size), Pattern(size, break_off))
    assert backend.list_raw() == []


def test_a_source_may_come_in_crumbs(backend: Backend) -> None:
    class Crumbs(io.BytesIO):
        def read(self, length: int | None = -1) -> bytes:
            return super().read(min(7, length) if length and length > 0 else 7)

    content = random.Random(3).randbytes(10_000)
    backend.store.put(digest_of(content), Crumbs(content))
    assert backend.read_raw(digest_of(content)) == content


def test_many_writers_of_one_blob_all_succeed(backend: Backend) -> None:
    content = random.Random(4).randbytes(3 * MIB)
    digest, start = digest_of(content), threading.Barrier(8)

    def write(number: int) -> int:
        start.wait()
        return backend.store.put(digest, io.BytesIO(content))

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(write, range(8))) == {len(content)}
    assert backend.read_raw(digest) == content
    assert len(backend.list_raw()) == 1


def test_readers_during_writes_see_all_or_nothing(backend: Backend) -> None:
    content = random.Random(5).randbytes(2 * MIB)
    digest, is_done = digest_of(content), threading.Event()

    def rewrite() -> None:
        for _ in range(10):
            backend.store.put(digest, io.BytesIO(content))
        is_done.set()

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(rewrite)
        while not is_done.is_set() and not writing.done():
            assert backend.store.has(digest) in (None, len(content))
            if backend.store.has(digest) is not None:
                assert read_verified(backend.store, digest, len(content)) == content
        writing.result()


@pytest.mark.parametrize("size", [1, 100, 2 * CHUNK_BYTES + 5])
@pytest.mark.parametrize("harm", ["flip", "cut", "grow", "empty"])
def test_rot_is_noticed_before_the_last_chunk(backend: Backend, size: int, harm: str) -> None:
    content = random.Random(6).randbytes(size)
    rotten = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1], "grow": content + b"x", "empty": b""}[harm]
    digest = put(backend, content)
    backend.write_raw(digest, rotten)
    received: list[bytes] = []
    with pytest.raises(DigestMismatch):
        received.extend(stream_verified(backend.store, digest))
    assert sum(len(chunk) for chunk in received) < len(content)
    with pytest.raises(DigestMismatch):
        read_verified(backend.store, digest, 10 * MIB)


READINGS: list[Callable[[ObjectStore, str], object]] = [
    lambda store, digest: list(stream_verified(store, digest)),
    lambda store, digest: read_verified(store, digest, 10 * MIB),
]


@pytest.mark.parametrize("read", READINGS, ids=["stream", "at once"])
@pytest.mark.parametrize("size", [1, 3 * MIB])
def test_rot_is_set_aside_when_it_is_read_and_mended_by_an_upload(
    backend: Backend, size: int, read: Callable[[ObjectStore, str], object]
) -> None:
    content = random.Random(9).randbytes(size)
    rotten = content[:-1] + bytes([content[-1] ^ 1])
    digest = digest_of(content)
    backend.write_raw(digest, rotten)
    for _ in range(2):
        with pytest.raises(DigestMismatch):
            read(backend.store, digest)
    with pytest.raises(DigestMismatch, match="set aside"):
        backend.store.range(digest, 0, 1)
    assert backend.store.has(digest) is None
    assert backend.read_raw(digest) is None
    put(backend, content)
    assert backend.store.has(digest) == size
    assert read_verified(backend.store, digest, size) == content
    backend.store.delete(digest)
    assert backend.list_raw() == []
    with pytest.raises(BlobNotFound):
        read(backend.store, digest)


def test_deleting_forgets_what_was_set_aside(backend: Backend) -> None:
    digest = put(backend, b"whole")
    backend.store.set_aside(digest)
    backend.store.set_aside(digest)
    backend.store.set_aside(ABSENT)
    with pytest.raises(DigestMismatch):
        next(backend.store.get(digest))
    backend.store.delete(digest)
    assert backend.list_raw() == []
    for name in (digest, ABSENT):
        with pytest.raises(BlobNotFound):
            next(backend.store.get(name))


def test_rot_is_told_before_the_first_byte(backend: Backend) -> None:
    content = random.Random(10).randbytes(3 * MIB)
    backend.write_raw(digest_of(content), content[:-1] + b"!" + content[-1:])
    with pytest.raises(DigestMismatch):
        next(stream_verified(backend.store, digest_of(content)))


def test_reading_at_once_is_bounded(backend: Backend) -> None:
    digest = put(backend, b"12345")
    with pytest.raises(TooLarge):
        read_verified(backend.store, digest, 4)


@LASTING
def test_a_large_blob_passes_through_flat(backend: Backend) -> None:
    size = 96 * MIB
    digest = Pattern.digest(size)
    tracemalloc.start()
    try:
        assert backend.store.put(digest, Pattern(size)) == size
        assert sum(len(chunk) for chunk in stream_verified(backend.store, digest)) == size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < backend.peak_bytes


def test_a_reader_may_stop_early(backend: Backend) -> None:
    digest = put(backend, random.Random(8).randbytes(3 * MIB))
    for _ in range(40):
        chunks = backend.store.get(digest)
        assert len(next(chunks)) <= CHUNK_BYTES
        chunks.close()  # type: ignore[attr-defined]
    assert backend.store.has(digest) == 3 * MIB


_DIE_WHILE_PUTTING = """
import json, os, signal, sys
from hub.s3 import S3Access, open_store
from tests.conformance.test_object_stores import Pattern
url, access, digest, size = json.loads(sys.argv[1])
def die(left):
    if left < size // 4:
        os.kill(os.getpid(), signal.SIGKILL)
open_store(url, access and S3Access(**access)).put(digest, Pattern(size, die))
"""


@LASTING
def test_sigkill_while_putting_leaves_no_blob(backend: Backend) -> None:
    size = 40 * MIB
    digest = Pattern.digest(size)
    access = backend.access and {name: getattr(backend.access, name) for name in ("endpoint", "access_key", "secret_key")}
    argument = json.dumps([backend.url, access, digest, size])
    ended = subprocess.run(
        [sys.executable, "-c", _DIE_WHILE_PUTTING, argument], check=False, timeout=120, env=os.environ | {"PYTHONPATH": "."}
    )
    assert ended.returncode == -signal.SIGKILL
    assert backend.store.has(digest) is None
    assert backend.read_raw(digest) is None
    assert backend.store.put(digest, Pattern(size)) == size
    assert read_verified(backend.store, digest, size)
