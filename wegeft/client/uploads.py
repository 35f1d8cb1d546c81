"""Bytes in parts to a server: what has come is not sent again, whichever of the two died meanwhile."""

from __future__ import annotations

from wegeft.client.blobs import STORE_SECONDS
from wegeft.client.transport import Call, Transport, json_body
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import Conflict, NotFound, ServiceUnreachable, UnexpectedAnswer
from wegeft.contracts.training import BlobView
from wegeft.contracts.uploads import UploadRequest, UploadView

ONE_REQUEST_BYTES = 8 << 20
"""Up to which bytes are sent whole."""
_RESTARTS = 3
_JSON = {"Content-Type": "application/json"}
_OCTETS = {"Content-Type": "application/octet-stream"}


def upload_in_parts(transport: Transport, prefix: str, content: bytes) -> None:
    """Send bytes in parts to the uploads under ``prefix``, going on where any process has stopped; return once they are stored whole.

    Raises :class:`ServiceUnreachable` where the server loses them again and again, and what it refuses them for.
    """
    for _ in range(_RESTARTS):
        try:
            _send(transport, prefix, content)
        except NotFound as error:
            if not _is_about(error, "upload"):
                raise
        except Conflict as error:
            if type(error) is not Conflict or not _is_about(error, "offset"):
                raise
        else:
            return
    raise ServiceUnreachable("the server loses the parts that it was sent", path="upload", hint="try again")


def _is_about(error: NotFound | Conflict, path: str) -> bool:
    return any(problem.path == path for problem in error.problems)


def _send(transport: Transport, prefix: str, content: bytes) -> None:
    begun = json_body(UploadRequest(digest=digest_of(content), size=len(content)))
    view = transport.ask(Call(method="POST", path=prefix, headers=_JSON, content=begun), UploadView)
    if view.is_stored:
        return
    while view.offset < len(content):
        view = _send_part(transport, f"{prefix}/{view.id}", view, content[view.offset : view.offset + view.part_bytes])
    call = Call(method="POST", path=f"{prefix}/{view.id}/finish", read_seconds=STORE_SECONDS)
    transport.ask(call, BlobView)


def _send_part(transport: Transport, path: str, view: UploadView, part: bytes) -> UploadView:
    path = f"{path}/parts/{view.offset}/{digest_of(part)}"
    call = Call(method="PUT", path=path, headers=_OCTETS, content=lambda: part, read_seconds=STORE_SECONDS)
    after = transport.ask(call, UploadView)
    if after.offset <= view.offset:
        raise UnexpectedAnswer("the server does not come on with an upload", path="offset", value=after.offset)
    return after
