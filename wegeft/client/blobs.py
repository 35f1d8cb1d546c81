"""Bytes by digest, to and from a server: streamed, verified, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import quote

import httpx2

from wegeft.client.own_files import open_own
from wegeft.client.transport import Call, Transport, json_body
from wegeft.contracts.adapter import AdapterName, FileEntry
from wegeft.contracts.errors import (
    AdapterNotFound,
    Conflict,
    DigestMismatch,
    Forbidden,
    InvalidData,
    InvalidInput,
    InvalidSetting,
    NotFound,
    Refused,
    ServiceUnreachable,
    StorageFull,
    StorageUnavailable,
    UnexpectedAnswer,
)
from wegeft.contracts.training import BlobView
from wegeft.contracts.uploads import AdapterUploadRequest, AdapterUploadView

CHUNK_BYTES = 1 << 20
ASKED_FROM_BYTES = 1 << 20
"""Shorter bytes are sooner sent than it is asked whether they are there."""
STORE_SECONDS = 300.0
"""How long a server may take to store what it has received."""

Progress = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes in all."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def upload(
    transport: Transport, prefix: str, source: Path | bytes, on_progress: Progress | None = None, *, adapter: AdapterName | None = None
) -> BlobView:
    """Put a file or bytes under ``<prefix>/<digest>`` unless they are there already; return their digest and size.

    ``adapter``: what they are for; what keeps the caller from publishing there is raised before much is sent. Raises :class:`InvalidData`
    where the file cannot be read or changes under our hands.
    """
    blob = describe(source)
    path, params = f"{prefix}/{quote(blob.digest, safe=':')}", {"adapter": str(adapter)} if adapter else {}
    if blob.size > ASKED_FROM_BYTES:
        match _ask(transport, path, {**params, "size": blob.size} if adapter else {}):
            case "stored":
                return blob
            case "refused" if adapter is not None:
                _hear_why(transport, adapter, blob)
    headers = {"Content-Length": str(blob.size), "Content-Type": "application/octet-stream"}
    content = partial(_chunks, source, blob.size, on_progress)
    transport.tell(Call(method="PUT", path=path, params=params, headers=headers, content=content, read_seconds=STORE_SECONDS))
    return blob


def _ask(transport: Transport, path: str, params: Mapping[str, str | int]) -> Literal["stored", "absent", "refused"]:
    try:
        transport.tell(Call(method="HEAD", path=path, params=params))
    except NotFound:
        return "absent"
    except (Refused, Conflict, InvalidInput):
        return "refused"  # without words, for a HEAD's answer has none
    return "stored"


def _hear_why(transport: Transport, adapter: AdapterName, blob: BlobView) -> None:
    """Ask the door of long files, which says before any byte why none may come; raise that."""
    request = AdapterUploadRequest(digest=blob.digest, size=blob.size)
    path, headers = f"/adapters/{adapter}/uploads", {"Content-Type": "application/json"}
    try:
        view = transport.ask(Call(method="POST", path=path, headers=headers, content=json_body(request)), AdapterUploadView)
    except AdapterNotFound as error:  # or it is hidden: what is new is published by those who may
        hint = f"ask who owns {adapter.namespace}"
        raise Forbidden("you may not publish there", path="adapter", value=str(adapter), hint=hint) from error
    if not view.is_stored:  # they may come after all by now
        transport.tell(Call(method="DELETE", path=f"{path}/{view.id}"))


def describe(source: Path | bytes) -> BlobView:
    """Return the digest and the size of a file or bytes; raise :class:`InvalidData` where the file cannot be read."""
    sha256, size = hashlib.sha256(), 0
    with opened(source) as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            size += len(chunk)
    return BlobView(digest=f"sha256:{sha256.hexdigest()}", size=size)


def _chunks(source: Path | bytes, size: int, on_progress: Progress | None) -> Iterator[bytes]:
    sent = 0
    with opened(source) as file:
        while chunk := file.read(CHUNK_BYTES):
            sent += len(chunk)
            if sent > size:
                break
            yield chunk
            if on_progress:
                on_progress(sent, size)
    if sent != size:
        raise InvalidData("the file changed while it was sent", path=str(source) if isinstance(source, Path) else "")


@contextmanager
def opened(source: Path | bytes) -> Iterator[BinaryIO]:
    """Give a file or bytes to read; raise :class:`InvalidData` where the file cannot be."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        with source.open("rb") as file:
            yield file
    except OSError as error:
        raise InvalidData(f"the file cannot be read: {error.strerror}", path=str(source)) from error


def fetch(transport: Transport, path: str, target: Path, digest: str, size: int | None = None) -> int:
    """Stream what is at ``path`` into the new file ``target``; return its size in bytes.

    The file appears whole and verified, or not at all. Raises :class:`DigestMismatch`, and :class:`StorageFull` where the disk is.
    """

    def once() -> int:
        with _whole_file(target) as file, transport.open(Call(method="GET", path=path, may_lead_elsewhere=True)) as response:
            return _verify(response.iter_bytes(CHUNK_BYTES), file, digest, size)

    return transport.retry(once)


def fetch_elsewhere(transport: Transport, address: str, target: Path, entry: FileEntry) -> None:
    """Stream a file from an address that the server has given, once; else as :func:`fetch`. Raises :class:`StorageUnavailable` besides."""
    headers = {"Accept-Encoding": "identity"}
    with _whole_file(target) as file, transport.elsewhere(address, "GET", headers) as response:
        _verify(response.iter_bytes(CHUNK_BYTES), file, entry.digest, entry.size)


def fetch_resumable(transport: Transport, path: str, target: Path, digest: str, max_bytes: int) -> None:
    """Fetch as :func:`fetch` does, going on where an earlier try ended, even that of a process that is gone.

    What came so far waits in ``<target>.part``. Raises :class:`DigestMismatch`, :class:`UnexpectedAnswer` where more than ``max_bytes``
    come, after which the next try starts afresh, and :class:`InvalidSetting` where what is there under the part's name is no file of ours.
    """
    gathered = _Gathered(part=target.with_name(f"{target.name}.part"), digest=digest, max_bytes=max_bytes)
    with local_errors(target.parent):
        _finish(gathered, _go_on(transport, path, gathered), target)


def fetch_long(transport: Transport, path: str, address: str | None, target: Path, entry: FileEntry, part: Path) -> None:
    """Fetch a file as :func:`fetch_resumable` does, first from an address that the server has given, if any, and else from ``path``.

    What came so far waits in ``part``, on the same disk, wherever it came from. An address that is good no more, or breaks off, is not
    tried again: the server gives a new one to who asks it.
    """
    gathered = _Gathered(part=part, digest=entry.digest, max_bytes=entry.size)
    with local_errors(target.parent):
        found = None
        if address is not None:
            with suppress(StorageUnavailable, ServiceUnreachable):
                found = gathered.go_on(lambda headers: transport.elsewhere(address, "GET", {**headers, "Accept-Encoding": "identity"}))
        if found is None:
            found = _go_on(transport, path, gathered)
        if found != entry.digest and address is not None:
            gathered.part.unlink()  # what came from the address may be at fault
            found = _go_on(transport, path, gathered)
        _finish(gathered, found, target)


@dataclass(frozen=True, kw_only=True)
class _Gathered:
    """The beginning of a file, as far as it has come."""

    part: Path
    digest: str
    """Of the whole."""
    max_bytes: int

    def go_on(self, ask: Callable[[dict[str, str]], AbstractContextManager[httpx2.Response]]) -> str:
        """Fetch the rest, if any, by a request with these headers; return the digest of the whole, whatever it should be."""
        sha256, held = _hash_of(self.part)
        if held and f"sha256:{sha256.hexdigest()}" == self.digest:
            return self.digest
        held = held if held < self.max_bytes else 0  # whole and wrong: nothing can be added to it
        with ask({"Range": f"bytes={held}-"} if held else {}) as response:
            goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {held}-")
            sha256 = sha256 if goes_on else hashlib.sha256()
            with open_own(self.part, makes=True) as file:
                file.truncate(file.seek(held if goes_on else 0))
                for chunk in response.iter_bytes():  # as they come: what waits for a whole chunk is lost with the connection
                    if file.tell() + len(chunk) > self.max_bytes:
                        self.part.unlink()
                        raise UnexpectedAnswer(f"the server sends more than {self.max_bytes} bytes", path=self.digest)
                    sha256.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        return f"sha256:{sha256.hexdigest()}"


def _go_on(transport: Transport, path: str, gathered: _Gathered) -> str:
    def once() -> str:
        return gathered.go_on(lambda headers: transport.open(Call(method="GET", path=path, headers=headers, may_lead_elsewhere=True)))

    try:
        return transport.retry(once)
    except InvalidInput:  # the server has less than we hold, so what we hold is not of this file
        gathered.part.unlink(missing_ok=True)
        return transport.retry(once)


def _finish(gathered: _Gathered, found: str, target: Path) -> None:
    if found != gathered.digest:
        gathered.part.unlink()
        raise DigestMismatch(path=gathered.digest, value=found)
    gathered.part.replace(target)


def _hash_of(path: Path) -> tuple[hashlib._Hash, int]:
    """Return the hash of what a file holds, to be gone on with, and its length; of none where there is no file."""
    sha256, size = hashlib.sha256(), 0
    with suppress(FileNotFoundError), open_own(path, makes=False) as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            size += len(chunk)
    return sha256, size


def _verify(chunks: Iterator[bytes], file: BinaryIO, digest: str, size: int | None) -> int:
    sha256, seen = hashlib.sha256(), 0
    for chunk in chunks:
        sha256.update(chunk)
        seen += len(chunk)
        if size is not None and seen > size:
            raise DigestMismatch("more bytes came than the file has", path=digest, hint=f"{size} bytes were announced")
        file.write(chunk)
    if size is not None and seen < size:
        raise ServiceUnreachable("the connection ended before the file did", path=digest, value=f"{seen} of {size} bytes")
    if f"sha256:{sha256.hexdigest()}" != digest:
        raise DigestMismatch(path=digest, value=f"sha256:{sha256.hexdigest()}")
    return seen


@contextmanager
def _whole_file(target: Path) -> Iterator[BinaryIO]:
    with local_errors(target.parent):
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def local_errors(folder: Path) -> Iterator[None]:
    """Name what goes wrong with a local folder: :class:`StorageFull`, or :class:`InvalidSetting` where it cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"no room left under {folder}", path=str(folder), hint="free some space and try again") from error
        raise InvalidSetting(f"cannot write under {folder}: {error.strerror}", path=str(folder)) from error
