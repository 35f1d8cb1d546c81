"""What only a folder can do wrong: full disks, rights, crashes, and several processes in it; and a model that it must follow."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub.folder_store import FolderStore
from hub.objects import VERIFIED_FIRST_BYTES, MemoryStore, ObjectStore, read_verified, stream_verified
from hub.s3 import open_store
from tests.conformance.stores import MIB, Pattern
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import DigestMismatch, InvalidSetting, StorageFull, StorageUnavailable


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_blobs_fan_out_by_their_names(tmp_path: Path) -> None:
    digest = digest_of(b"hello")
    FolderStore(tmp_path).put(digest, io.BytesIO(b"hello"))
    name = digest.removeprefix("sha256:")
    assert everything(tmp_path) == [f"sha256/{name[:2]}/{name[2:4]}/{name}"]


def test_a_blob_cannot_be_written_to_by_mistake(tmp_path: Path) -> None:
    FolderStore(tmp_path).put(digest_of(b"hello"), io.BytesIO(b"hello"))
    path = tmp_path / everything(tmp_path)[0]
    assert path.stat().st_mode & 0o222 == 0


def run_child(program: str, *arguments: object, file_limit: int | None = None) -> subprocess.CompletedProcess[str]:
    lines = (
        "import io, json, resource, sys\nfrom pathlib import Path\nfrom hub.folder_store import FolderStore\na = json.loads(sys.argv[1])\n"
    )
    if file_limit is not None:
        lines += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_limit}, {file_limit}))\n"
    command = [sys.executable, "-c", lines + program, json.dumps(arguments)]
    return subprocess.run(command, check=False, timeout=60, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."})


_PUT = """
from tests.conformance.stores import Pattern
from wegeft.contracts.errors import WegeftError
try:
    FolderStore(Path(a[0])).put(Pattern.digest(a[1]), Pattern(a[1]))
except WegeftError as error:
    print(error.code)
"""


def test_a_file_over_the_systems_limit_is_a_full_store(tmp_path: Path) -> None:
    ended = run_child(_PUT, str(tmp_path), 3 * MIB, file_limit=2 * MIB)
    assert (ended.stdout.strip(), ended.returncode) == ("storage_full", 0), ended.stderr
    assert everything(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two mebibytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system here; the file size limit stands in for it")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_and_leaves_nothing(tiny_disk: Path) -> None:
    store = FolderStore(tiny_disk)
    kept = digest_of(b"kept")
    store.put(kept, io.BytesIO(b"kept"))
    with pytest.raises(StorageFull, match="full") as caught:
        store.put(Pattern.digest(3 * MIB), Pattern(3 * MIB))
    assert str(tiny_disk) not in str(caught.value)
    assert len(everything(tiny_disk)) == 1
    assert read_verified(store, kept, 10) == b"kept"
    assert store.put(Pattern.digest(MIB), Pattern(MIB)) == MIB


_DIE = """
import os, signal
from tests.conformance.stores import Pattern
def die(left):
    if left < a[1] // 2:
        os.kill(os.getpid(), signal.SIGKILL)
FolderStore(Path(a[0])).put(Pattern.digest(a[1]), Pattern(a[1], die))
"""


def test_what_a_crash_leaves_is_swept_when_the_folder_is_opened_again(tmp_path: Path) -> None:
    assert run_child(_DIE, str(tmp_path), 8 * MIB).returncode == -signal.SIGKILL
    assert [path.split("/")[0] for path in everything(tmp_path)] == ["tmp"]
    FolderStore(tmp_path)
    assert everything(tmp_path) == []


def test_opening_the_folder_again_spares_what_is_being_written(tmp_path: Path) -> None:
    store, opened = FolderStore(tmp_path), threading.Event()

    def reopen(left: int) -> None:
        if left < 2 * MIB and not opened.is_set():
            for _ in range(3):
                FolderStore(tmp_path)
            assert run_child("FolderStore(Path(a[0]))", str(tmp_path)).returncode == 0
            opened.set()

    size = 4 * MIB
    store.put(Pattern.digest(size), Pattern(size, reopen))
    assert opened.is_set()
    assert read_verified(store, Pattern.digest(size), size)


def test_a_file_that_was_swept_before_it_was_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window between creating and locking a temporary file is too short to hit, so the system call is slowed down."""
    store, lock = FolderStore(tmp_path), fcntl.flock
    swept: list[bool] = []

    def slow_lock(descriptor: int, operation: int) -> None:
        if not swept:
            swept.append(True)
            FolderStore(tmp_path)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow_lock)
    store.put(digest_of(b"hello"), io.BytesIO(b"hello"))
    assert read_verified(store, digest_of(b"hello"), 10) == b"hello"


_PUT_MANY = """
from wegeft.contracts.adapter import digest_of
store = FolderStore(Path(a[0]))
for number in range(60):
    content = str(number).encode() * 999
    store.put(digest_of(content), io.BytesIO(content))
"""


def test_two_processes_put_the_same_blobs(tmp_path: Path) -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(run_child(_PUT_MANY, str(tmp_path)).returncode)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    store = FolderStore(tmp_path)
    assert len(everything(tmp_path)) == 60
    for number in range(60):
        content = str(number).encode() * 999
        assert read_verified(store, digest_of(content), len(content)) == content


def calls(store: ObjectStore, digest: str) -> list[Callable[[], object]]:
    return [
        lambda: store.put(digest, io.BytesIO(b"hello")),
        lambda: list(store.get(digest)),
        lambda: store.range(digest, 0, 1),
        lambda: store.has(digest),
    ]


def test_a_folder_that_went_away_is_not_an_empty_store(tmp_path: Path) -> None:
    store, digest = FolderStore(tmp_path / "store"), digest_of(b"hello")
    store.put(digest, io.BytesIO(b"hello"))
    shutil.rmtree(tmp_path / "store")
    for call in calls(store, digest):
        with pytest.raises(StorageUnavailable, match="folder"):
            call()


def test_what_rotted_is_kept_beside_its_place_until_it_is_mended(tmp_path: Path) -> None:
    store, digest = FolderStore(tmp_path), digest_of(b"whole")
    store.put(digest, io.BytesIO(b"whole"))
    (place,) = everything(tmp_path)
    rot(tmp_path / place, b"whale")
    with pytest.raises(DigestMismatch):
        read_verified(store, digest, 10)
    assert everything(tmp_path) == [f"{place}.rotten"]
    assert (tmp_path / f"{place}.rotten").read_bytes() == b"whale"
    store.put(digest, io.BytesIO(b"whole"))
    assert everything(tmp_path) == [place]


def rot(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


def test_what_is_mended_while_its_rot_is_read_stays(tmp_path: Path) -> None:
    """A blob above the limit, so that the reader holds the rotten file open while the right one takes its place."""
    store, size = FolderStore(tmp_path), VERIFIED_FIRST_BYTES + 1
    digest = Pattern.digest(size)
    store.put(digest, Pattern(size))
    (place,) = everything(tmp_path)
    with (tmp_path / place).open("r+b") as file:
        file.write(b"rotten")
    chunks = stream_verified(store, digest)
    next(chunks)
    store.put(digest, Pattern(size))
    with pytest.raises(DigestMismatch):
        list(chunks)
    assert everything(tmp_path) == [place]
    assert store.has(digest) == size


def test_rot_that_cannot_be_set_aside_is_told_all_the_same(tmp_path: Path) -> None:
    store, digest = FolderStore(tmp_path), digest_of(b"whole")
    store.put(digest, io.BytesIO(b"whole"))
    (place,) = everything(tmp_path)
    rot(tmp_path / place, b"whale")
    (tmp_path / f"{place}.rotten").mkdir()
    with pytest.raises(DigestMismatch):
        read_verified(store, digest, 10)
    assert store.has(digest) == 5


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    with pytest.raises(StorageUnavailable, match=r"Not a directory|File exists"):
        FolderStore(tmp_path / "store")


def test_a_folder_in_the_place_of_a_blob_is_told(tmp_path: Path) -> None:
    store, digest = FolderStore(tmp_path), digest_of(b"hello")
    store.put(digest, io.BytesIO(b"hello"))
    path = tmp_path / everything(tmp_path)[0]
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageUnavailable):
        list(store.get(digest))


_OPEN_WITHOUT_RIGHTS = """
import os
from wegeft.contracts.errors import WegeftError
if os.geteuid() == 0:
    os.setuid(65534)
try:
    FolderStore(Path(a[0]) / "store")
except WegeftError as error:
    print(error.code, error.message)
"""


def test_a_folder_without_rights_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    ended = run_child(_OPEN_WITHOUT_RIGHTS, str(tmp_path))
    assert ended.stdout == "storage_unavailable the object store's folder does not work: Permission denied\n", ended.stderr
    tmp_path.chmod(0o700)


def test_a_blob_may_go_while_it_is_read(tmp_path: Path) -> None:
    store, size = FolderStore(tmp_path), 3 * MIB
    store.put(Pattern.digest(size), Pattern(size))
    chunks = store.get(Pattern.digest(size))
    received = len(next(chunks))
    store.delete(Pattern.digest(size))
    assert received + sum(len(chunk) for chunk in chunks) == size


def test_a_store_is_opened_by_its_url(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/a%20b")
    store.put(digest_of(b"hello"), io.BytesIO(b"hello"))
    assert (tmp_path / "a b" / "sha256").is_dir()
    assert isinstance(open_store("memory:"), MemoryStore)
    assert store.presign(digest_of(b"hello"), 60) is None


@pytest.mark.parametrize(
    "url", ["", "memory", "memory:x", "file:relative", "file://host/path", "s3:", "s3://", "s3://bucket", "http://x", "/path"]
)
def test_what_is_no_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        open_store(url)
    assert caught.value.problems[0].path == "store"
