"""The hub's own HTTP API: blobs going in; adapters, their versions, files and aliases coming out."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response, params

from hub import access_api, catalog, hf_api, provenance, provenance_api, uploads_api
from hub.adapter_query import AdapterQuery, FilterQuery
from hub.adapter_uploads import find_sent
from hub.catalog import Sender
from hub.collection import Collector
from hub.formats import api as formats_api
from hub.intake import check_kept
from hub.named_adapter import Name
from hub.named_version import Selector, resolve_named
from hub.pulls import begin_pull
from hub.services import HubServices
from hub.serving import FILE_ANSWERS, HEAD_ANSWERS, ServedBlob, answer_blob, answer_head
from infra.auth import Guard, Principal, Role
from infra.bodies import declared_length, sends_files, streams_body, waits_for_store
from infra.database import reading, writing
from infra.description import BINARY
from infra.http import API_PREFIX
from infra.queries import described_query, reading_query
from infra.routers import Gathering
from wegeft.contracts.adapter import (
    AdapterFacets,
    AdapterName,
    AdapterPage,
    AdapterRef,
    AdapterView,
    AliasMove,
    VersionPage,
    VersionView,
    check_digest,
    check_selector,
)
from wegeft.contracts.aliases import AliasProtection
from wegeft.contracts.collection import Collected, CollectionPlan
from wegeft.contracts.errors import BlobNotFound, FileNotFoundInVersion, InvalidRequest
from wegeft.contracts.pulling import PULL_TYPE
from wegeft.contracts.training import BlobView
from wegeft.contracts.uploads import ONE_REQUEST_BYTES

Limit = Annotated[int, Query(ge=1, le=100, description="How many to answer at most.")]
Cursor = Annotated[str | None, Query(max_length=1000, description="`next_cursor` of the page before.")]
ForAdapter = Annotated[
    str | None,
    Query(max_length=200, description="The adapter that they are for: whoever may not publish there, or has no room, is refused at once."),
]
_COLLECTED_AT_ONCE = 100


def make_router(services: HubServices, guard: Guard) -> APIRouter:
    """Return the hub's routes: ours under ``/api/v1``, and those that Hugging Face's clients ask for."""
    guard = guard.checking(catalog.check_path)
    router = Gathering()
    # What is asked for most, first and under its whole path: FastAPI looks twice through what another router puts a prefix before.
    router.include_router(_blob_router(services, guard))
    router.include_router(_list_router(services, guard))
    router.include_router(_adapter_router(services, guard))
    sending = [Depends(sends_files(guard.require(Role.READ), services.downloads_at_once))]
    router.include_router(_pull_router(services, sending))
    router.include_router(_file_router(services, sending))
    router.include_router(_own_router(services, guard), prefix=API_PREFIX)
    router.include_router(provenance_api.make_keys_router(services))
    router.include_router(hf_api.make_router(services, guard))
    return router


def _own_router(services: HubServices, guard: Guard) -> APIRouter:
    router = Gathering()
    router.include_router(provenance_api.make_router(services, guard))
    router.include_router(formats_api.make_router(services, guard))
    router.include_router(_alias_router(services, guard))
    router.include_router(access_api.make_router(services, guard))
    router.include_router(uploads_api.make_router(services, guard))
    router.include_router(_collection_router(services), dependencies=[Depends(guard.require(Role.ADMIN))])
    return router


def _blob_router(services: HubServices, guard: Guard) -> APIRouter:
    router = APIRouter(prefix=f"{API_PREFIX}/blobs", tags=["blobs"])
    intake = services.intake
    Writer = Annotated[Principal, Depends(guard.require(Role.WRITE))]

    @router.head("/{digest}", summary="Whether bytes are stored that the caller has sent, or that are published", response_class=Response)
    @waits_for_store
    def head_blob(
        digest: str,
        caller: Writer,
        adapter: ForAdapter = None,
        size: Annotated[int, Query(ge=0, lt=1 << 62, description="How many they are, where they are for an adapter.")] = 0,
    ) -> Response:
        # What others have sent is told apart from nothing by nobody who knows its digest alone.
        found = find_sent(services, caller, check_digest(digest))
        if adapter is not None:
            _check_sender(services, caller, AdapterName.parse(adapter), size if found is None else None)
        if found is None:
            raise BlobNotFound(path=digest)
        return Response(headers={"Content-Length": str(found), "ETag": f'"{digest}"'}, media_type="application/octet-stream")

    @router.put(
        "/{digest}",
        summary="Store bytes under their digest; 200 where the caller has sent them before",
        status_code=201,
        openapi_extra={"requestBody": BINARY},
        responses={200: {"description": "The caller has sent them before", "model": BlobView}},
    )
    @streams_body
    def put_blob(digest: str, caller: Writer, request: Request, response: Response, adapter: ForAdapter = None) -> BlobView:
        is_new = find_sent(services, caller, check_digest(digest)) is None
        response.status_code = 201 if is_new else 200
        sender = services.sender(caller) if adapter is None else _sender_for(services, caller, adapter, request, is_new=is_new)
        size = intake.receive(digest, request, sender)
        with writing(services.engine) as connection:
            is_kept = intake.own_staged(connection, digest, size, sender)
        check_kept(digest, is_kept=is_kept)
        return BlobView(digest=digest, size=size)

    return router


def _sender_for(services: HubServices, caller: Principal, adapter: str, request: Request, *, is_new: bool) -> Sender:
    """Return who sends a request's body for an adapter.

    Raises :class:`InvalidRequest` for more than one request should keep a namespace's room for, and as :func:`_check_sender` does.
    """
    name, length = AdapterName.parse(adapter), declared_length(request.scope)
    if length is None or length > ONE_REQUEST_BYTES:
        hint = "send more by an upload in parts, which keeps room for what has come"
        raise InvalidRequest(f"bytes for an adapter must be {ONE_REQUEST_BYTES} or fewer", path="content-length", value=length, hint=hint)
    _check_sender(services, caller, name, length if is_new else None)
    return services.sender(caller, name.namespace)


def _check_sender(services: HubServices, caller: Principal, name: AdapterName, new_bytes: int | None) -> None:
    """Raise :class:`Forbidden` where the caller may not publish, and :class:`QuotaExceeded` where there is no room.

    So nobody need send anything to hear it. ``new_bytes``: how many come at least; None where they are there.
    """
    with reading(services.engine) as connection:
        catalog.check_publisher(connection, caller, name)
        if new_bytes is not None:
            catalog.check_room(connection, name, new_bytes)


def _list_router(services: HubServices, guard: Guard) -> APIRouter:
    router = APIRouter(prefix=f"{API_PREFIX}/adapters", tags=["adapters"])
    Reader = Annotated[Principal, Depends(guard.require(Role.READ))]

    # Lists are written out here, because FastAPI would check our own answers once more.
    @router.get(
        "",
        summary="Adapters that a filter selects, page by page",
        response_model=AdapterPage,
        openapi_extra=described_query(AdapterQuery),
    )
    def list_adapters(caller: Reader, query: Annotated[AdapterQuery, Depends(reading_query(AdapterQuery))]) -> Response:
        with reading(services.engine) as connection:
            page = catalog.list_adapters(connection, query.limit, query.after, wanted=query.wanted, order=query.order, reader=caller)
        return Response(page.model_dump_json(), media_type="application/json")

    @router.get(
        "/facets",
        summary="What the adapters that a filter selects are, counted; of very many the last published",
        response_model=AdapterFacets,
        openapi_extra=described_query(FilterQuery),
    )
    def get_facets(caller: Reader, query: Annotated[FilterQuery, Depends(reading_query(FilterQuery))]) -> Response:
        with reading(services.engine) as connection:
            facets = catalog.count_facets(connection, query.wanted, reader=caller)
        return Response(facets.model_dump_json(), media_type="application/json")

    return router


def _adapter_router(services: HubServices, guard: Guard) -> APIRouter:
    router = APIRouter(prefix=f"{API_PREFIX}/adapters", tags=["adapters"], dependencies=[Depends(guard.require(Role.READ))])

    @router.get("/{namespace}/{name}", summary="An adapter")
    def get_adapter(adapter: Name) -> AdapterView:
        with reading(services.engine) as connection:
            return catalog.find_adapter(connection, adapter)

    @router.get("/{namespace}/{name}/versions", summary="Its versions, newest first")
    def list_versions(adapter: Name, limit: Limit = 50, after: Cursor = None) -> VersionPage:
        with reading(services.engine) as connection:
            return catalog.list_versions(connection, adapter, limit, after)

    @router.get("/{namespace}/{name}/versions/{selector}", summary="A version, by number or alias")
    def get_version(adapter: Name, selector: Selector) -> VersionView:
        return provenance.with_signature(services, resolve_named(services, adapter, selector))

    return router


def _pull_router(services: HubServices, sending: Sequence[params.Depends]) -> APIRouter:
    router = APIRouter(prefix=f"{API_PREFIX}/adapters", tags=["adapters"], dependencies=sending)

    @router.get(
        "/{namespace}/{name}/versions/{selector}/pull",
        summary="A version with its short files and the hub's keys",
        response_class=Response,
        responses={200: {"description": "A line of JSON, and the files that it says follow", "content": {PULL_TYPE: {}}}},
    )
    @waits_for_store
    def get_pull(adapter: Name, selector: Selector) -> Response:
        ref = AdapterRef(adapter=adapter, selector=check_selector(selector))
        return Response(begin_pull(services, ref), media_type=PULL_TYPE)

    return router


def _file_router(services: HubServices, sending: Sequence[params.Depends]) -> APIRouter:
    prefix = f"{API_PREFIX}/adapters/{{namespace}}/{{name}}/versions/{{selector}}/files"
    router = APIRouter(prefix=prefix, tags=["files"], dependencies=sending)

    @router.get("/{path:path}", summary="A version's file", responses=FILE_ANSWERS, response_class=Response)
    @waits_for_store
    def get_file(adapter: Name, selector: Selector, path: str, request: Request) -> Response:
        return answer_blob(services.store, _file(services, adapter, selector, path), request, services.direct_from_bytes)

    @router.head("/{path:path}", summary="What a version's file is", responses=HEAD_ANSWERS, response_class=Response)
    def head_file(adapter: Name, selector: Selector, path: str, request: Request) -> Response:
        return answer_head(_file(services, adapter, selector, path), request.headers)

    return router


def _alias_router(services: HubServices, guard: Guard) -> APIRouter:
    router = APIRouter(prefix="/adapters/{namespace}/{name}/aliases", tags=["aliases"])
    Writer = Annotated[Principal, Depends(guard.require(Role.WRITE))]

    @router.put("/{alias}", summary="Let an alias point to a version, by compare-and-set")
    def put_alias(adapter: Name, alias: str, body: AliasMove, caller: Writer) -> AdapterView:
        with writing(services.engine) as connection:
            catalog.refuse_tag(connection, adapter, alias)
            catalog.check_mover(connection, caller, adapter, alias)
            catalog.set_alias(connection, adapter, alias, body, services.clock())
            return catalog.find_adapter(connection, adapter)

    @router.delete("/{alias}", summary="Forget an alias", status_code=204)
    def delete_alias(adapter: Name, alias: str, caller: Writer) -> None:
        with writing(services.engine) as connection:
            catalog.check_mover(connection, caller, adapter, alias)
            catalog.delete_alias(connection, adapter, alias)

    @router.put("/{alias}/protection", summary="Let only admins move and delete an alias, or everybody who may publish")
    def put_protection(
        adapter: Name,
        alias: str,
        body: AliasProtection,
        caller: Annotated[Principal, Depends(guard.require(Role.WRITE, of_target=Role.ADMIN))],  # noqa: ARG001 - who may
    ) -> AdapterView:
        with writing(services.engine) as connection:
            catalog.protect_alias(connection, adapter, alias, services.clock(), is_protected=body.is_protected)
            return catalog.find_adapter(connection, adapter)

    return router


def _collection_router(services: HubServices) -> APIRouter:
    router = APIRouter(prefix="/collection", tags=["collection"])
    collector = Collector(engine=services.engine, store=services.store)

    @router.get("", summary="What is stored, and what nobody needs any more")
    def get_plan() -> CollectionPlan:
        return collector.plan(services.clock())

    @router.post("", summary="Delete some of what nobody needs; ask again until it is done")
    @waits_for_store
    def post_collection(
        formats: Annotated[
            Literal["unused", "all"], Query(description="Which derived formats go first: those unused for long, or all.")
        ] = "unused",
    ) -> Collected:
        return collector.collect(services.clock(), _COLLECTED_AT_ONCE, spares_formats=formats == "unused")

    return router


def _file(services: HubServices, adapter: AdapterName, selector: str, path: str) -> ServedBlob:
    version = resolve_named(services, adapter, selector)
    entry = next((entry for entry in version.manifest.files if entry.path == path), None)
    if entry is None:
        held = ", ".join(entry.path for entry in version.manifest.files)
        raise FileNotFoundInVersion(path=version.ref, value=path, hint=f"it holds {held}")
    return ServedBlob(
        digest=entry.digest,
        size=entry.size,
        media_type=entry.media_type,
        file_name=entry.path,
        is_immutable=selector == str(version.version),
        tag=entry.digest,
    )
