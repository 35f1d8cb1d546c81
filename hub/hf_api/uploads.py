"""Sending files: what a client asks before it sends, the commit itself, and the doors that clients try and that lead nowhere here."""

import base64
import binascii
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, Field

from hub import catalog
from hub.catalog import Repository
from hub.hf_api.commit_request import path_problems, weights_problems
from hub.hf_api.committing import Committer
from hub.hf_api.dialect import Doors, HfRoute, address_of
from hub.hf_api.ignored_files import is_ignored
from hub.hf_api.revisions import resolve
from hub.hf_views import EMPTY_COMMIT, MAIN, View, commit_of, git_hash
from hub.named_adapter import Name
from hub.provenance import with_signature
from hub.services import HubServices
from infra.auth import Principal
from infra.bodies import BodyReader, streams_body, waits_for_store
from infra.database import reading
from infra.routers import Gathering
from wegeft.contracts.adapter import FileEntry, VersionView
from wegeft.contracts.errors import Broken, InvalidRequest, NotFound, Problem

_ROOT = "/api/models/{namespace}/{name}"
_MAX_FILES = 256
_BESIDE_FILES = 1 << 20
"""Bytes of a commit's body that are not files."""
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255, pattern=r"^[\x21-\x7e]+$")]
"""What a client of ours calls one commit, however often it sends it."""
_MAX_COMPARED = 256 << 20
"""Of a larger file the client is not told whether it has changed; it is sent again, and that is seen here."""


class Announced(BaseModel):
    """A file that a client would send."""

    path: Annotated[str, Field(max_length=1024)]
    sample: Annotated[str, Field(max_length=4096)] = ""
    """Its first bytes, in base64."""
    size: Annotated[int, Field(ge=0, lt=1 << 63)]


class Announcement(BaseModel):
    """Files that a client would send in the next commits."""

    files: Annotated[list[Announced], Field(max_length=_MAX_FILES)]
    gitIgnore: Annotated[str, Field(max_length=1 << 16)] | None = None  # noqa: N815 - the clients' spelling


class LfsObject(BaseModel):
    """Bytes that a client would send to a store of git-lfs."""

    oid: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class LfsBatch(BaseModel):
    """What git-lfs asks first."""

    operation: str
    objects: Annotated[list[LfsObject], Field(max_length=_MAX_FILES)]


def make_router(doors: Doors) -> APIRouter:
    """Return the routes that take files."""
    router = Gathering()
    router.include_router(_preupload_router(doors.services), dependencies=[Depends(doors.writer)])
    router.include_router(_commit_router(doors))
    router.include_router(_elsewhere_router(doors))
    return router


def _preupload_router(services: HubServices) -> APIRouter:
    router = APIRouter(route_class=HfRoute)

    @router.post(f"{_ROOT}/preupload/{{revision:path}}")
    @waits_for_store
    def preupload(adapter: Name, revision: str, body: Announcement, request: Request) -> View:
        _check_target(revision, request)
        head = resolve(services, adapter, MAIN)
        kept = [file for file in body.files if not is_ignored(file.path, body.gitIgnore)]
        if problems := [problem for file in kept for problem in _announced_problems(file, services.max_blob_bytes)]:
            raise InvalidRequest("the files cannot all be part of a version", problems=problems)
        entries = {} if isinstance(head, Repository) else _named_in_git(services, body.files, head)
        shown = [
            {"path": file.path, "uploadMode": "regular", "shouldIgnore": file not in kept} | entries.get((file.path, file.size), {})
            for file in body.files
        ]
        return {"files": shown, "commitOid": EMPTY_COMMIT if isinstance(head, Repository) else commit_of(head)}

    return router


def _announced_problems(file: Announced, max_bytes: int) -> Iterator[Problem]:
    yield from path_problems(file.path)
    if file.size > max_bytes:
        yield Problem(path=file.path, message="the file is too large", value=f"{file.size} bytes", hint=f"at most {max_bytes}")
    try:
        yield from weights_problems(file.path, base64.b64decode(file.sample, validate=True))
    except (binascii.Error, ValueError):
        yield Problem(path=file.path, message="the sample is not base64")


def _named_in_git(services: HubServices, files: list[Announced], head: VersionView) -> dict[tuple[str, int], View]:
    """Return git's names for what the newest version has in the place of files, where their sizes are the same."""
    announced = {(file.path, file.size) for file in files}
    same = [entry for entry in head.manifest.files if (entry.path, entry.size) in announced and entry.size <= _MAX_COMPARED]
    return {(entry.path, entry.size): {"oid": name} for entry in same if (name := _content_name(services, entry))}


def _content_name(services: HubServices, entry: FileEntry) -> str | None:
    """Return git's name for a stored file; None where its bytes cannot be read now, which is no reason to refuse new ones."""
    try:
        return git_hash(services.store.get(entry.digest), entry.size)
    except (Broken, NotFound):
        return None


def _check_target(revision: str, request: Request) -> None:
    if request.query_params.get("create_pr"):
        raise InvalidRequest("there are no pull requests here", path="create_pr", hint="commit to main: every commit is a new version")
    if revision != MAIN:
        hint = "commit to main, then let a branch or a tag point to the new version"
        raise InvalidRequest("versions are one line, and only main grows", path="revision", value=revision, hint=hint)


def _commit_router(doors: Doors) -> APIRouter:
    router = APIRouter(route_class=HfRoute)
    services = doors.services

    @router.post(f"{_ROOT}/commit/{{revision:path}}")
    @streams_body
    def post_commit(
        adapter: Name, revision: str, caller: Annotated[Principal, Depends(doors.writer)], request: Request, key: Key = None
    ) -> View:
        _check_target(revision, request)
        resolve(services, adapter, MAIN)
        committer = Committer(services=services, adapter=adapter, caller=caller)
        with BodyReader(request, services.max_blob_bytes * 4 // 3 + _BESIDE_FILES) as body:
            made = committer.commit(committer.read(body, key))
        commit = commit_of(made)
        url = f"{address_of(request, made.adapter)}/commit/{commit}"
        told = with_signature(services, made).model_dump(mode="json")
        return {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": "", "version": told}

    return router


def _elsewhere_router(doors: Doors) -> APIRouter:
    router = APIRouter(route_class=HfRoute)

    @router.post("/{namespace}/{name}.git/info/lfs/objects/batch")
    def lfs_batch(adapter: Name, body: LfsBatch, caller: Annotated[Principal, Depends(doors.writer)], response: Response) -> View:
        resolve(doors.services, adapter, MAIN)
        known = _known(doors.services, caller, [f"sha256:{item.oid}" for item in body.objects])
        response.headers["Content-Type"] = "application/vnd.git-lfs+json"
        return {"transfer": "basic", "objects": [_lfs_answer(item, is_known=f"sha256:{item.oid}" in known) for item in body.objects]}

    @router.get(f"{_ROOT}/xet-{{kind}}-token/{{revision:path}}", dependencies=[Depends(doors.reader)])
    def refuse_xet(adapter: Name, kind: str) -> Response:
        raise NotFound("this hub has no Xet; set HF_HUB_DISABLE_XET=1 or use wgctl", path=str(adapter), value=kind)

    return router


def _known(services: HubServices, caller: Principal, digests: list[str]) -> frozenset[str]:
    """Return those bytes that need not come again, because the caller has sent them or may read them."""
    with reading(services.engine) as connection:
        return catalog.find_had(connection, catalog.upload_of(caller.token_id), digests, caller)


def _lfs_answer(item: LfsObject, *, is_known: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"oid": item.oid, "size": item.size}
    if is_known:
        return shown
    return shown | {"error": {"code": 422, "message": "send the file in the commit itself, or to /api/v1/blobs first"}}
