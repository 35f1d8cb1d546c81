"""Bytes in parts to a server: what has come is not sent again, whichever of the two died meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wegeft.client.blobs import STORE_SECONDS, Progress, describe, opened
from wegeft.client.transport import Call, Transport, json_body
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import Conflict, InvalidData, NotFound, ServiceUnreachable, StorageUnavailable, UnexpectedAnswer
from wegeft.contracts.training import BlobView
from wegeft.contracts.uploads import AdapterUploadRequest, AdapterUploadView, PartAddress, UploadRequest, UploadView

_RESTARTS = 3
_JSON = {"Content-Type": "application/json"}
_OCTETS = {"Content-Type": "application/octet-stream"}
_MOST_PART_BYTES = 256 << 20
"""A part is held in memory; a server that asks for longer ones is not believed."""


def upload_in_parts(transport: Transport, prefix: str, content: bytes) -> None:
    """Send bytes in parts to the uploads under ``prefix``, going on where any process has stopped; return once they are stored whole.

    Raises :class:`ServiceUnreachable` where the server loses them again and again, and what it refuses them for.
    """
    request = UploadRequest(digest=digest_of(content), size=len(content))
    whole = BlobView(digest=request.digest, size=request.size)
    sender = _Sender(transport=transport, prefix=prefix, source=content, whole=whole)
    _try_again(lambda: sender.send(transport.ask(sender.open(request), UploadView)))


def upload_file(transport: Transport, prefix: str, source: Path, on_progress: Progress | None = None) -> BlobView:
    """Send a long file in parts to an adapter's uploads under ``prefix``, or to the store itself where the hub says so; return what it is.

    A part at a time is in memory. Raises as :func:`upload_in_parts` does, and :class:`InvalidData` where the file changes meanwhile.
    """
    whole = describe(source)
    sender = _Sender(transport=transport, prefix=prefix, source=source, whole=whole, on_progress=on_progress)

    def once(*, may_be_direct: bool) -> None:
        request = AdapterUploadRequest(digest=whole.digest, size=whole.size, may_be_direct=may_be_direct)
        view = transport.ask(sender.open(request), AdapterUploadView)
        if view.is_direct and not may_be_direct:
            transport.tell(Call(method="DELETE", path=f"{prefix}/{view.id}"))
            view = transport.ask(sender.open(request), AdapterUploadView)
        sender.send_directly(view) if view.is_direct else sender.send(view)

    try:
        _try_again(lambda: once(may_be_direct=True))
    except StorageUnavailable as error:
        if not _is_about(error, "store"):  # else only we cannot reach it, so the hub must
            raise
        _try_again(lambda: once(may_be_direct=False))
    return whole


def _try_again(once: Callable[[], None]) -> None:
    for _ in range(_RESTARTS):
        try:
            once()
        except NotFound as error:
            if not _is_about(error, "upload"):
                raise
        except Conflict as error:
            if type(error) is not Conflict or not _is_about(error, "offset"):
                raise
        else:
            return
    raise ServiceUnreachable("the server loses the parts that it was sent", path="upload", hint="try again")


def _is_about(error: NotFound | Conflict | StorageUnavailable, path: str) -> bool:
    return any(problem.path == path for problem in error.problems)


@dataclass(frozen=True, kw_only=True)
class _Sender:
    """Sends one source's parts."""

    transport: Transport
    prefix: str
    source: Path | bytes
    whole: BlobView
    on_progress: Progress | None = None

    def open(self, request: UploadRequest) -> Call:
        return Call(method="POST", path=self.prefix, headers=_JSON, content=json_body(request), read_seconds=STORE_SECONDS)

    def send(self, view: UploadView) -> None:
        """Send what has not come, part after part, and end the upload."""
        if view.is_stored:
            return
        while view.offset < self.whole.size:
            self._tell(view.offset)
            view = self._send_part(view, self._read(view.offset, min(view.part_bytes, self.whole.size - view.offset)))
        self._finish(view.id)

    def send_directly(self, view: AdapterUploadView) -> None:
        """Put what has not come to the addresses that the server gives, and end the upload."""
        while view.addresses:
            before = view.offset
            for address in view.addresses:
                self._tell(view.offset)
                self.transport.retry(lambda address=address: self._put(address))  # type: ignore[misc]  # bound now, called now
            view = self.transport.ask(Call(method="GET", path=f"{self.prefix}/{view.id}"), AdapterUploadView)
            if view.offset <= before:
                raise UnexpectedAnswer("the server does not come on with an upload", path="offset", value=view.offset)
        self._finish(view.id)

    def _put(self, address: PartAddress) -> None:
        part = self._read(address.offset, address.size)
        with self.transport.elsewhere(address.url, "PUT", {}, part) as response:
            response.read()

    def _send_part(self, view: UploadView, part: bytes) -> UploadView:
        path = f"{self.prefix}/{view.id}/parts/{view.offset}/{digest_of(part)}"
        call = Call(method="PUT", path=path, headers=_OCTETS, content=lambda: part, read_seconds=STORE_SECONDS)
        after = self.transport.ask(call, UploadView)
        if after.offset <= view.offset:
            raise UnexpectedAnswer("the server does not come on with an upload", path="offset", value=after.offset)
        return after

    def _finish(self, upload_id: str) -> None:
        self.transport.ask(Call(method="POST", path=f"{self.prefix}/{upload_id}/finish", read_seconds=STORE_SECONDS), BlobView)
        self._tell(self.whole.size)

    def _read(self, offset: int, size: int) -> bytes:
        if size > _MOST_PART_BYTES or offset + size > self.whole.size:
            raise UnexpectedAnswer("the server asks for a part that cannot be", path="part_bytes", value=size)
        with opened(self.source) as file:
            file.seek(offset)
            part = file.read(size)
        if len(part) != size:
            raise InvalidData("the file changed while it was sent", path=str(self.source) if isinstance(self.source, Path) else "")
        return part

    def _tell(self, offset: int) -> None:
        if self.on_progress is not None:
            self.on_progress(offset, self.whole.size)
