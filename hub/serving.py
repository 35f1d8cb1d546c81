"""How a blob goes over HTTP: whole and verified, in part, or not at all (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hub.objects import CHUNK_BYTES, HELD_BYTES, ObjectStore, read_verified, stream_verified
from infra.description import BINARY
from infra.http import problem_response
from wegeft.contracts.errors import BlobNotFound, InvalidRequest, StorageUnavailable, TooLarge

VERIFIED_RANGE_BYTES = 8 << 20
"""A part of a blob up to this size is cut out of the whole, verified one; of a larger blob the reader verifies the whole itself."""
DIRECT_SECONDS = 900
"""How long an address of the store itself, that anyone may read from who has it, is good."""

HEAD_ANSWERS: dict[int | str, dict[str, Any]] = {304: {"description": "The reader has it already"}}
BLOB_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: BINARY,
    206: {"description": "The part that was asked for", **BINARY},
    **HEAD_ANSWERS,
    302: {"description": "It is to be had from the store itself, at Location, for a while"},
    416: {"description": "It ends before the part that was asked for"},
}
"""What :func:`answer_blob` may answer, for the API's description."""
_ANY: dict[str, Any] = {"content": {"*/*": {}}}
FILE_ANSWERS = BLOB_ANSWERS | {200: _ANY, 206: {"description": "The part that was asked for", **_ANY}}
"""The same of a file, which has a type of its own."""

_RANGE = re.compile(r"bytes=(\d{1,18})?-(\d{1,18})?\Z", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ServedBlob:
    """A blob, and what its reader should know."""

    digest: str
    size: int
    """Bytes."""
    media_type: str
    file_name: str
    is_immutable: bool
    """Whether the address will always mean these bytes."""
    tag: str
    """Names the bytes, for caches."""

    @property
    def etag(self) -> str:
        """The strong entity tag."""
        return f'"{self.tag}"'

    @property
    def headers(self) -> dict[str, str]:
        """What every answer says, whole, partial or empty."""
        return {
            "ETag": self.etag,
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=31536000, immutable" if self.is_immutable else "private, no-cache",
            "Content-Disposition": f'attachment; filename="{self.file_name}"',
            "X-Content-Type-Options": "nosniff",
        }


def answer_blob(store: ObjectStore, blob: ServedBlob, request: Request, direct_from_bytes: int | None = None) -> Response:
    """Return the answer to a GET: 200, 206, 304 or 416, or 302 to the store's own server.

    A blob of ``direct_from_bytes`` and more is read from the store itself where that can be; None: never. A whole body never completes
    unless its bytes are the right ones. Raises :class:`DigestMismatch` where that shows at once.
    """
    asked = request.headers
    if _is_known(blob, asked):
        return Response(status_code=304, headers=blob.headers)
    span = _asked_span(blob, asked)
    if span is not None and span[0] > span[1]:
        return _refuse_span(blob, request)
    if (direct := _direct(store, blob, direct_from_bytes)) is not None:
        return direct
    if span is None:
        return _whole(store, blob)
    first, last = span
    headers = blob.headers | {"Content-Range": f"bytes {first}-{last}/{blob.size}", "Content-Length": str(last - first + 1)}
    return StreamingResponse(_begun(_part(store, blob, first, last)), 206, headers, blob.media_type)


def _direct(store: ObjectStore, blob: ServedBlob, from_bytes: int | None) -> Response | None:
    url = store.presign(blob.digest, DIRECT_SECONDS, blob.file_name) if from_bytes is not None and blob.size >= from_bytes else None
    if url is None:
        return None
    # Not for caches: the address expires, and is a key to the bytes until then.
    return Response(status_code=302, headers={"Location": url, "ETag": blob.etag, "Cache-Control": "private, no-store"})


def _refuse_span(blob: ServedBlob, request: Request) -> Response:
    refusal = InvalidRequest("the file ends before that", path="range", value=request.headers["range"], hint=f"it has {blob.size} bytes")
    answer = problem_response(refusal, request, 416)
    answer.headers["Content-Range"] = f"bytes */{blob.size}"
    return answer


def answer_head(blob: ServedBlob, asked: Headers) -> Response:
    """Return the answer to a HEAD: what a GET of the whole would say, without its body."""
    if _is_known(blob, asked):
        return Response(status_code=304, headers=blob.headers)
    return Response(headers=blob.headers | {"Content-Length": str(blob.size)}, media_type=blob.media_type)


def _whole(store: ObjectStore, blob: ServedBlob) -> Response:
    headers = blob.headers | {"Content-Length": str(blob.size)}
    if blob.size <= HELD_BYTES:
        return Response(_held(store, blob), 200, headers, blob.media_type)
    return StreamingResponse(_begun(stream_verified(store, blob.digest)), 200, headers, blob.media_type)


def _held(store: ObjectStore, blob: ServedBlob) -> bytes:
    try:
        return read_verified(store, blob.digest, 2 * HELD_BYTES)
    except TooLarge:  # far too long, so it is rot, which this tells and sets aside
        return b"".join(stream_verified(store, blob.digest))
    except BlobNotFound as error:
        raise _lost(error) from error


def _lost(error: BlobNotFound) -> StorageUnavailable:
    return StorageUnavailable("the store has lost the bytes of this file", problems=error.problems)


def _begun(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Take the first chunk now, so that what is wrong at once is told by a status instead of a cut connection."""
    try:
        first = next(chunks, b"")
    except BlobNotFound as error:
        raise _lost(error) from error
    return chain([first], chunks)


def _part(store: ObjectStore, blob: ServedBlob, first: int, last: int) -> Iterator[bytes]:
    if blob.size <= VERIFIED_RANGE_BYTES:
        yield read_verified(store, blob.digest, blob.size)[first : last + 1]
        return
    for start in range(first, last + 1, CHUNK_BYTES):
        yield store.range(blob.digest, start, min(CHUNK_BYTES, last + 1 - start))


def _is_known(blob: ServedBlob, asked: Headers) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in asked.get("if-none-match", "").split(",")]
    return blob.etag in tags or tags == ["*"]


def _asked_span(blob: ServedBlob, asked: Headers) -> tuple[int, int] | None:
    """Return the first and the last position asked for, a last before the first where there is none; None for the whole.

    Several ranges at once, other units and nonsense are answered with the whole, which the standard allows.
    """
    match = _RANGE.match(asked.get("range", ""))
    if match is None or match.group(1, 2) == (None, None) or asked.get("if-range", blob.etag) != blob.etag:
        return None
    if match[1] is None:
        return max(0, blob.size - int(match[2])), blob.size - 1 if int(match[2]) else -1
    first, last = int(match[1]), int(match[2] or blob.size)
    if match[2] is not None and last < first:
        return None
    return first, min(last, blob.size - 1)
