"""A published version into a local folder: every byte verified, and the folder whole or not there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from wegeft.client.blobs import fetch, local_errors
from wegeft.client.transport import Transport
from wegeft.contracts.adapter import PUBLISHABLE_FILES, FileEntry, VersionView, digest_of
from wegeft.contracts.bundles import SIGNATURE_FILE
from wegeft.contracts.errors import DigestMismatch, InvalidSetting, UnexpectedAnswer

_FORBIDDEN = frozenset("/\\:\0")


def download(transport: Transport, version: VersionView, folder: Path, *, overwrite: bool) -> None:
    """Write the files of ``version`` to ``folder``, which must not exist, be empty, or, to overwrite, hold an adapter and no more.

    The version's signature, which the caller has checked, is written beside them, so that they can be verified without any server.
    """
    target = folder.expanduser().resolve()
    _check_target(target, overwrite=overwrite)
    files = _checked_files(version)
    with local_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _folder_beside(target) as made:
            for entry in files:
                path = f"/adapters/{version.adapter}/versions/{version.version}/files/{quote(entry.path)}"
                fetch(transport, path, made / entry.path, entry.digest, entry.size)
                (made / entry.path).chmod(0o644)
            if version.signature is not None:
                (made / SIGNATURE_FILE).write_text(version.signature, encoding="utf-8")
            _swap(made, target)


def fetch_folder(transport: Transport, prefix: str, files: Iterable[FileEntry], folder: Path) -> None:
    """Write the files under ``prefix`` into a new folder, which appears whole and verified, or not at all.

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
            _swap(made, target)


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
