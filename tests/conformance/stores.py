"""Stores under test.

State is set up and looked at behind the store's back, by ``Backend``, so that no method vouches for itself.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3

from hub.folder_store import FolderStore
from hub.objects import MemoryStore, ObjectStore
from hub.s3 import S3Access, open_store
from tests.servers import S3Server
from wegeft.contracts.adapter import digest_of

ABSENT = digest_of(b"nobody ever stored this")
MIB = 1 << 20
LASTING = pytest.mark.parametrize("backend", ["folder", "s3"], indirect=True)
"""For promises that only a store outside of the process can make."""


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
