"""Bytes by digest, to and from a server: streamed, verified, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from wegeft.client.transport import Call, Transport
from wegeft.contracts.errors import (
    Conflict,
    DigestMismatch,
    InvalidData,
    InvalidInput,
    InvalidSetting,
    NotFound,
    Refused,
    ServiceUnreachable,
    StorageFull,
    UnexpectedAnswer,
)
from wegeft.contracts.training import BlobView

CHUNK_BYTES = 1 << 20
STORE_SECONDS = 300.0
"""How long a server may take to store what it has received."""

Progress = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes in all."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def upload(transport: Transport, prefix: str, source: Path | bytes, on_progress: Progress | None = None) -> BlobView:
    """Put a file or bytes under ``<prefix>/<digest>`` unless they are there already; return their digest and size.

    Raises :class:`InvalidData` where the file cannot be read or changes under our hands.
    """
    blob = _describe(source)
    path = f"{prefix}/{quote(blob.digest, safe=':')}"
    if _is_stored(transport, path):
        return blob
    headers = {"Content-Length": str(blob.size), "Content-Type": "application/octet-stream"}
    put = Call(
        method="PUT", path=path, headers=headers, content=lambda: _chunks(source, blob.size, on_progress), read_seconds=STORE_SECONDS
    )
    transport.tell(put)
    return blob


def _is_stored(transport: Transport, path: str) -> bool:
    try:
        transport.tell(Call(method="HEAD", path=path))
    except (NotFound, Refused, Conflict, InvalidInput):
        # The refusal of a HEAD has no words; where it means more than that the bytes are new, the PUT will hear them.
        return False
    return True


def _describe(source: Path | bytes) -> BlobView:
    sha256, size = hashlib.sha256(), 0
    with _opened(source) as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            size += len(chunk)
    return BlobView(digest=f"sha256:{sha256.hexdigest()}", size=size)


def _chunks(source: Path | bytes, size: int, on_progress: Progress | None) -> Iterator[bytes]:
    sent = 0
    with _opened(source) as file:
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
def _opened(source: Path | bytes) -> Iterator[BinaryIO]:
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
        with _whole_file(target) as file, transport.open(Call(method="GET", path=path)) as response:
            return _verify(response.iter_bytes(CHUNK_BYTES), file, digest, size)

    return transport.retry(once)


def fetch_resumable(transport: Transport, path: str, target: Path, digest: str, max_bytes: int) -> None:
    """Fetch as :func:`fetch` does, going on where an earlier try ended, even that of a process that is gone.

    What came so far waits in ``<target>.part``. Raises :class:`DigestMismatch`, and :class:`UnexpectedAnswer` where more than ``max_bytes``
    come, after which the next try starts afresh.
    """
    part = target.with_name(f"{target.name}.part")

    def once() -> None:
        held = part.stat().st_size if part.exists() else 0
        if held and _digest_of_file(part) == digest:
            return
        headers = {"Range": f"bytes={held}-"} if held else {}
        with transport.open(Call(method="GET", path=path, headers=headers)) as response:
            goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {held}-")
            with part.open("ab" if goes_on else "wb") as file:
                for chunk in response.iter_bytes():  # as they come: what waits for a whole chunk is lost with the connection
                    if file.tell() + len(chunk) > max_bytes:
                        part.unlink()
                        raise UnexpectedAnswer(f"the server sends more than {max_bytes} bytes", path=digest)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())

    with local_errors(target.parent):
        try:
            transport.retry(once)
        except InvalidInput:  # the server has less than we hold, so what we hold is not of this file
            part.unlink(missing_ok=True)
            transport.retry(once)
        found = _digest_of_file(part)
        if found != digest:
            part.unlink()
            raise DigestMismatch(path=digest, value=found)
        part.replace(target)


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


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
            raise StorageFull(f"no room left under {folder}", path=str(folder), hint="free some space; nothing was kept") from error
        raise InvalidSetting(f"cannot write under {folder}: {error.strerror}", path=str(folder)) from error
