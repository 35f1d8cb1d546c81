"""What every object store promises where bytes rot, a source breaks or a writer is killed; over memory, a folder and a real S3 server."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from hub.objects import CHUNK_BYTES, ObjectStore, read_verified, stream_verified
from tests.conformance.stores import ABSENT, LASTING, MIB, Backend, Pattern, put
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import BlobNotFound, DigestMismatch


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


_DIE_WHILE_PUTTING = """
import json, os, signal, sys
from hub.s3 import S3Access, open_store
from tests.conformance.stores import Pattern
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
