"""A published version into a local folder: every byte verified, and the folder whole or not there."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from pydantic import ValidationError

from wegeft.client.blobs import fetch, fetch_elsewhere, fetch_long, local_errors
from wegeft.client.own_files import may_be_own, open_own
from wegeft.client.transport import Call, Transport
from wegeft.contracts.adapter import PUBLISHABLE_FILES, FileEntry, VersionView, digest_of
from wegeft.contracts.bundles import SIGNATURE_FILE
from wegeft.contracts.errors import DigestMismatch, InvalidSetting, ServiceUnreachable, StorageUnavailable, UnexpectedAnswer
from wegeft.contracts.pulling import PULL_TYPE, PullView, read_pull

RESUMED_FROM_BYTES = 8 << 20
"""A shorter file is sooner fetched anew than its rest is asked for."""
_SYNCED_AT_ONCE = 3
"""Beside one."""
_FORBIDDEN = frozenset("/\\:\0")


@dataclass(frozen=True)
class Pulled:
    """What a server has answered to a pull; nothing of it is checked yet."""

    view: PullView
    contents: Mapping[str, memoryview]
    """Of the short files, by path."""

    @property
    def version(self) -> VersionView:
        """The version that it is said to be."""
        return self.view.version


def begin(transport: Transport, path: str) -> Pulled:
    """Ask for a version, its short files and the keys, in one; ``path`` is the version's."""

    call = Call(method="GET", path=f"{path}/pull", headers={"Accept": f"{PULL_TYPE}, application/problem+json"})

    def once() -> Pulled:
        with transport.open(call) as answer:
            try:
                return Pulled(*read_pull(transport.read(answer)))
            except (ValidationError, KeyError) as error:
                raise UnexpectedAnswer("the answer is not one of this protocol", path="server") from error

    return transport.retry(once)


def download(transport: Transport, pulled: Pulled, folder: Path, *, overwrite: bool) -> None:
    """Write the files of a version to ``folder``, which must not exist, be empty, or, to overwrite, hold an adapter and no more.

    The version's signature, which the caller has checked, is written beside them, so that they can be verified without any server. Of a
    long file, what has come before a process died is not asked for again: it waits beside the folder.
    """
    version = pulled.version
    target = folder.expanduser().resolve()
    _check_target(target, overwrite=overwrite)
    files = _checked_files(version)
    with local_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _folder_beside(target) as made:
            short = [entry for entry in files if entry.path in pulled.contents]
            contents: dict[str, bytes | memoryview] = {entry.path: _checked(pulled.contents[entry.path], entry) for entry in short}
            if version.signature is not None:
                contents[SIGNATURE_FILE] = version.signature.encode()
            for entry in files:
                if entry.path not in contents:
                    _fetch(transport, pulled, entry, made / entry.path)
                    (made / entry.path).chmod(0o644)
            _write_synced(made, contents)
            _swap(made, target)


def _checked(content: memoryview, entry: FileEntry) -> memoryview:
    if len(content) != entry.size or digest_of(content) != entry.digest:
        raise DigestMismatch(path=entry.digest, value=digest_of(content))
    return content


def _write_synced(folder: Path, contents: Mapping[str, bytes | memoryview]) -> None:
    """Write new files into a folder that nobody else sees yet; all are on the disk in the end.

    They are synced at the same time, for a journal commits what waits for it at once: three files take hardly longer than one.
    """
    with ExitStack() as stack:
        written = [stack.enter_context((folder / name).open("xb")) for name in contents]
        for file, content in zip(written, contents.values(), strict=True):
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
            file.flush()
        with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
            others = pool.map(os.fsync, written[1:])
            for file in written[:1]:
                os.fsync(file)  # by ourselves, for a thread takes a while to begin
            list(others)


def fetch_folder(transport: Transport, prefix: str, files: Iterable[FileEntry], folder: Path, signature: str | None) -> None:
    """Write the files under ``prefix`` into a new folder, which appears whole and verified, or not at all; beside them their signature.

    Raises :class:`InvalidSetting` where there is something already, :class:`DigestMismatch`, and :class:`StorageFull`.
    """
    target = folder.expanduser().resolve()
    _check_target(target, overwrite=False)
    with local_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _folder_beside(target) as made:
            for entry in files:
                fetch(transport, f"{prefix}/{quote(entry.path)}", made / entry.path, entry.digest, entry.size)
                (made / entry.path).chmod(0o644)
            if signature is not None:
                (made / SIGNATURE_FILE).write_text(signature, encoding="utf-8")
            _swap(made, target)


def _fetch(transport: Transport, pulled: Pulled, entry: FileEntry, target: Path) -> None:
    version, address = pulled.version, pulled.view.addresses.get(entry.path)
    path = f"/adapters/{version.adapter}/versions/{version.version}/files/{quote(entry.path)}"
    if entry.size >= RESUMED_FROM_BYTES:
        with _own_part(target, entry) as part:
            fetch_long(transport, path, address, target, entry, part)
        return
    if address is not None:
        # Not tried again: the hub gives a new address to who asks it for the file.
        with suppress(StorageUnavailable, ServiceUnreachable):
            fetch_elsewhere(transport, address, target, entry)
            return
    fetch(transport, path, target, entry.digest, entry.size)


@contextmanager
def _own_part(target: Path, entry: FileEntry) -> Iterator[Path]:
    """Give where to gather a long file: the same place for every process that pulls it here, if none does at this moment.

    Beside the folder others may write, and know the name: where it is not ours to use, the file is gathered in our own hidden folder.
    """
    own = target.with_name(f"{target.name}.own")
    beside = target.parent.parent.parent  # of the hidden folder, which is another one in each process
    shared = beside / f".{entry.digest.removeprefix('sha256:')[:32]}"
    lock, part = shared.with_suffix(".lock"), shared.with_suffix(".part")
    try:
        file = open_own(lock, makes=True)
    except OSError:
        yield own
        return
    with file:
        if not _is_locked(file):
            yield own
            return
        try:
            yield part if may_be_own(part) else own
        finally:
            lock.unlink(missing_ok=True)


def _is_locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(file.fileno()).st_nlink > 0  # else its owner has ended meanwhile, and the next one locks another file


def _check_target(target: Path, *, overwrite: bool) -> None:
    with local_errors(target):
        if not target.exists():
            return
        if not target.is_dir():
            raise InvalidSetting("there is a file already", path="folder", value=str(target), hint="give another folder")
        names = {path.name for path in target.iterdir()}
    if names and not overwrite:
        raise InvalidSetting("there is something already", path="folder", value=str(target), hint="give another folder, or --overwrite")
    if names - PUBLISHABLE_FILES - {SIGNATURE_FILE}:
        # Overwriting deletes what was there, so it stops at anything that is not an adapter's.
        raise InvalidSetting("the folder holds more than an adapter", path="folder", value=str(target), hint="give another folder")


def _checked_files(version: VersionView) -> tuple[FileEntry, ...]:
    if digest_of(version.manifest.to_bytes()) != version.manifest_digest:
        raise DigestMismatch("the manifest does not match its digest", path=version.ref)
    try:
        files = version.manifest.files
    except KeyError as error:
        raise UnexpectedAnswer("the manifest holds a file without a name", path=version.ref) from error
    names = [entry.path for entry in files]
    for name in names:
        if name in ("", ".", "..", SIGNATURE_FILE) or _FORBIDDEN & set(name) or names.count(name) > 1:
            raise UnexpectedAnswer("the manifest holds a file that cannot be in its folder", path=version.ref, value=name)
    return files


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """Give a new folder on the same disk, to be renamed to ``target``; delete what is left of it at the end."""
    hidden = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    made = hidden / "new"
    try:
        made.mkdir()
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        # Not the whole of it: where the old folder could be put neither away nor back, it is still in there.
        with suppress(OSError):
            hidden.rmdir()


def _swap(made: Path, target: Path) -> None:
    old = made.with_name("old")
    if target.exists():
        target.rename(old)
    try:
        made.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
