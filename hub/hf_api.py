"""The Hugging Face dialect, for reading: with ``HF_ENDPOINT`` set to us, their clients list, inspect and download adapters.

The rules that the clients hold us to: a HEAD is answered by ourselves, with the commit and a tag; errors are told in
``X-Error-Code`` and ``X-Error-Message``; a revision is ``main``, a version's number, an alias, or a commit of 40 hex digits.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.routing import APIRoute
from sqlalchemy import Connection

from hub import catalog
from hub.hf_views import MAIN, commit_of, hex_of, listed_model, model_info, refs_view, tree_entry
from hub.services import HubServices
from hub.serving import ServedBlob, answer_blob, answer_head
from infra.auth import Guard, Principal, Role
from infra.database import reading
from infra.http import problem_response
from wegeft.contracts.adapter import LATEST, AdapterName, AdapterRef, VersionView, check_segment, check_selector
from wegeft.contracts.errors import (
    AdapterNotFound,
    AliasNotFound,
    FileNotFoundInVersion,
    InvalidReference,
    InvalidRequest,
    Unauthenticated,
    VersionNotFound,
    WegeftError,
)

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_MAX_PATHS = 1000
_PAGE = 100
_BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - the words that the clients look for
_SORTS: dict[str, catalog.Order] = {"lastModified": "updated", "downloads": "name", "likes": "name", "trendingScore": "name"}
"""Downloads and likes are not counted, so every order is theirs."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _HfRoute(APIRoute):
    """A route whose errors are told as the clients expect."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except WegeftError as error:
                return _refusal(error, request)

        return answer


def _refusal(error: WegeftError, request: Request, commit: str | None = None) -> Response:
    status, code, message = error.http_status, "", str(error)
    match error:
        case AdapterNotFound() | InvalidReference():
            status, code = 404, "RepoNotFound"
        case VersionNotFound() | AliasNotFound():
            status, code = 404, "RevisionNotFound"
        case FileNotFoundInVersion():
            status, code = 404, "EntryNotFound"
        case InvalidRequest():
            status = 400
        case Unauthenticated():
            message = _BAD_TOKEN
        case _:
            pass
    answer = problem_response(error, request, status)
    answer.headers["X-Error-Message"] = " ".join(message.encode("ascii", "replace").decode().split())[:500]
    if code:
        answer.headers["X-Error-Code"] = code
    if commit:
        answer.headers["X-Repo-Commit"] = commit  # lets a client remember that the file is not there
    return answer


def _adapter_name(namespace: str, name: str) -> AdapterName:
    return AdapterName(namespace=check_segment(namespace, "namespace"), name=check_segment(name))


Name = Annotated[AdapterName, Depends(_adapter_name)]


def make_router(services: HubServices, guard: Guard) -> APIRouter:
    """Return the routes of the dialect, from the root."""
    reader = guard.require(Role.READ)
    router = APIRouter(route_class=_HfRoute, include_in_schema=False)
    router.include_router(_account_router(reader))
    router.include_router(_model_router(services, reader), dependencies=[Depends(reader)])
    for part in (_tree_router, _file_router):
        router.include_router(part(services), dependencies=[Depends(reader)])
    return router


def _account_router(reader: Callable[..., Principal]) -> APIRouter:
    router = APIRouter(route_class=_HfRoute)

    @router.get("/api/whoami-v2")
    def whoami(caller: Annotated[Principal, Depends(reader)]) -> dict[str, Any]:
        role = "read" if caller.role is Role.READ else "write"
        token = {"displayName": caller.name, "role": role}
        named = {"type": "user", "name": caller.name, "fullname": caller.name, "orgs": []}
        return named | {"auth": {"type": "access_token", "accessToken": token}}

    return router


def _model_router(services: HubServices, reader: Callable[..., Principal]) -> APIRouter:
    router = APIRouter(route_class=_HfRoute)

    @router.get("/api/models")
    def list_models(
        request: Request,
        response: Response,
        caller: Annotated[Principal, Depends(reader)],
        wanted: Annotated[catalog.AdapterFilter | None, Depends(_model_filter)],
        page_of: Annotated[tuple[int, str | None], Depends(_page_of)],
        sort: str | None = None,
    ) -> list[dict[str, Any]]:
        if sort is not None and sort not in _SORTS:
            raise InvalidRequest("models are not sorted so", path="sort", value=sort, hint=", ".join(sorted(_SORTS)))
        if wanted is None:
            return []
        with reading(services.engine) as connection:
            order = _SORTS.get(sort or "", "name")
            page = catalog.list_adapters(connection, *page_of, wanted=wanted, order=order, reader=caller)
        if page.next_cursor:
            response.headers["Link"] = f'<{request.url.include_query_params(cursor=page.next_cursor)}>; rel="next"'
        return [listed_model(view) for view in page.adapters]

    @router.get("/api/models/{namespace}/{name}")
    def get_model(adapter: Name, blobs: bool = False) -> dict[str, Any]:
        return model_info(_resolve(services, adapter, MAIN), with_blobs=blobs)

    @router.get("/api/models/{namespace}/{name}/revision/{revision:path}")
    def get_revision(adapter: Name, revision: str, blobs: bool = False) -> dict[str, Any]:
        return model_info(_resolve(services, adapter, revision), with_blobs=blobs)

    @router.get("/api/models/{namespace}/{name}/auth-check")
    def check_access(adapter: Name) -> dict[str, Any]:
        _resolve(services, adapter, MAIN)
        return {}

    return router


def _tree_router(services: HubServices) -> APIRouter:
    router = APIRouter(route_class=_HfRoute)
    root = "/api/models/{namespace}/{name}"

    @router.get(f"{root}/tree/{{revision}}")
    def list_tree(adapter: Name, revision: str, expand: bool = False) -> list[dict[str, Any]]:
        version = _resolve(services, adapter, revision)
        return [tree_entry(entry, version, is_expanded=expand) for entry in version.manifest.files]

    @router.post(f"{root}/paths-info/{{revision}}")
    def list_paths(adapter: Name, revision: str, form: Annotated[dict[str, list[str]], Depends(_form)]) -> list[dict[str, Any]]:
        version, wanted = _resolve(services, adapter, revision), set(form.get("paths", []))
        is_expanded = form.get("expand", ["false"])[0].lower() == "true"
        return [tree_entry(entry, version, is_expanded=is_expanded) for entry in version.manifest.files if entry.path in wanted]

    @router.get(f"{root}/refs")
    def list_refs(adapter: Name) -> dict[str, Any]:
        with reading(services.engine) as connection:
            newest = catalog.list_versions(connection, adapter, _PAGE).versions
            aliases = catalog.find_adapter(connection, adapter).aliases
            older = {name: _find(connection, adapter, name) for name in aliases}
        named = {str(version.version): version for version in newest} | older
        return refs_view({name: commit_of(version) for name, version in named.items()})

    return router


async def _form(request: Request) -> dict[str, list[str]]:
    try:
        return parse_qs((await request.body()).decode(), max_num_fields=_MAX_PATHS + 10)
    except ValueError as error:
        raise InvalidRequest("not a form, or too many paths", path="body", hint=f"at most {_MAX_PATHS} paths") from error


def _file_router(services: HubServices) -> APIRouter:
    router = APIRouter(route_class=_HfRoute)

    @router.head("/{namespace}/{name}/resolve/{revision}/{path:path}")
    def head_file(adapter: Name, revision: str, path: str, request: Request) -> Response:
        return _answer_file(services, _resolve(services, adapter, revision), path, request)

    @router.get("/{namespace}/{name}/resolve/{revision}/{path:path}")
    def get_file(adapter: Name, revision: str, path: str, request: Request) -> Response:
        return _answer_file(services, _resolve(services, adapter, revision), path, request)

    @router.get("/api/models/{model}")
    @router.head("/{model}/resolve/{revision}/{path:path}")
    @router.get("/{model}/resolve/{revision}/{path:path}")
    def refuse_without_namespace(model: str) -> Response:
        """Base models of old have no namespace; a client must hear that they are not here."""
        raise AdapterNotFound(path="model", value=model)

    return router


def _answer_file(services: HubServices, version: VersionView, path: str, request: Request) -> Response:
    commit = commit_of(version)
    entry = next((entry for entry in version.manifest.files if entry.path == path), None)
    if entry is None:
        return _refusal(FileNotFoundInVersion(path=version.ref, value=path), request, commit)
    blob = ServedBlob(
        digest=entry.digest,
        size=entry.size,
        media_type=entry.media_type,
        file_name=entry.path,
        is_immutable=request.path_params["revision"] in (commit, str(version.version)),
        tag=hex_of(entry),
    )
    answer = answer_head(blob, request.headers) if request.method == "HEAD" else answer_blob(services.store, blob, request.headers)
    answer.headers.update({"X-Repo-Commit": commit, "X-Linked-ETag": blob.etag, "X-Linked-Size": str(entry.size)})
    return answer


def _resolve(services: HubServices, adapter: AdapterName, revision: str) -> VersionView:
    with reading(services.engine) as connection:
        return _find(connection, adapter, revision)


def _find(connection: Connection, adapter: AdapterName, revision: str) -> VersionView:
    if _COMMIT.match(revision):
        return catalog.resolve_commit(connection, adapter, revision)
    try:
        selector = LATEST if revision == MAIN else check_selector(revision)
    except InvalidReference:
        catalog.find_adapter(connection, adapter)
        raise VersionNotFound(path=str(adapter), value=revision, hint="main, a version's number, an alias, or a commit") from None
    return catalog.resolve(connection, AdapterRef(adapter=adapter, selector=selector))


def _page_of(limit: Annotated[int, Query(ge=1)] = _PAGE, cursor: str | None = None) -> tuple[int, str | None]:
    return min(limit, _PAGE), cursor


def _model_filter(
    search: str | None = None, author: str | None = None, filter_: Annotated[list[str] | None, Query(alias="filter")] = None
) -> catalog.AdapterFilter | None:
    """Return what a list is filtered by; None where no adapter can have all the tags asked for."""
    meant = _meaning(filter_ or [])
    return None if meant is None else catalog.AdapterFilter(search=search, namespace=author, **meant)


def _meaning(tags: list[str]) -> dict[str, Any] | None:
    meant: dict[str, Any] = {}
    for tag in tags:
        kind, _, value = tag.rpartition(":")
        match kind:
            case "" if value == "peft":
                found: dict[str, Any] = {}
            case "":
                found = {"method": value}
            case "rank" if value.isdecimal() and value.isascii() and len(value) < 10:
                found = {"rank": int(value)}
            case "base_model" | "base_model:adapter":
                found = {"base_model": value}
            case _:
                return None
        if any(meant.get(name, wanted) != wanted for name, wanted in found.items()):
            return None
        meant |= found
    return meant
