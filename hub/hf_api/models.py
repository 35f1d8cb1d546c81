"""Adapters as models: lists of them, what one is, and who is asking."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from hub import catalog
from hub.catalog import Repository
from hub.catalog.organisations import memberships_of
from hub.hf_api.card_data import card_data
from hub.hf_api.dialect import Doors, HfRoute
from hub.hf_api.revisions import resolve
from hub.hf_views import MAIN, View, empty_model, listed_model, model_info, only
from hub.named_adapter import Name
from hub.services import HubServices
from hub.signature_files import signature_files
from infra.auth import Principal, Role
from infra.bodies import waits_for_store
from infra.database import reading
from wegeft.contracts.adapter import AdapterName, FileEntry, VersionView
from wegeft.contracts.errors import InvalidRequest

_PAGE = 100
_SORTS: dict[str, catalog.Order] = {"lastModified": "updated", "downloads": "name", "likes": "name", "trendingScore": "name"}
"""Downloads and likes are not counted, so every order is theirs."""
_UNKNOWN_HERE = frozenset({"pipeline_tag", "apps", "inference", "inference_provider", "num_parameters"})
"""What lists are filtered by elsewhere; no adapter of ours says such a thing of itself."""
_ROOT = "/api/models/{namespace}/{name}"

Expand = Annotated[list[str] | None, Query()]


def make_router(doors: Doors) -> APIRouter:
    """Return the routes that list and describe adapters."""
    router = APIRouter(route_class=HfRoute, dependencies=[Depends(doors.reader)])
    router.include_router(_account_router(doors))
    router.include_router(_list_router(doors))
    router.include_router(_model_router(doors))
    return router


def _account_router(doors: Doors) -> APIRouter:
    router = APIRouter(route_class=HfRoute)

    @router.get("/api/whoami-v2")
    def whoami(caller: Annotated[Principal, Depends(doors.reader)]) -> View:
        role = "read" if caller.role is Role.READ else "write"
        with reading(doors.services.engine) as connection:
            memberships = memberships_of(connection, caller)
        orgs = [{"type": "org", "id": name.lower(), "name": name, "fullname": name, "roleInOrg": str(held)} for name, held in memberships]
        named = {"type": "user", "name": caller.name, "fullname": caller.name, "orgs": orgs}
        return named | {"auth": {"type": "access_token", "accessToken": {"displayName": caller.name, "role": role}}}

    return router


def _list_router(doors: Doors) -> APIRouter:
    router = APIRouter(route_class=HfRoute)

    @router.get("/api/models")
    def list_models(
        request: Request,
        response: Response,
        caller: Annotated[Principal, Depends(doors.reader)],
        wanted: Annotated[catalog.AdapterFilter | None, Depends(_model_filter)],
        page_of: Annotated[tuple[int, str | None], Depends(_page_of)],
    ) -> list[View]:
        order, expand = _order(request.query_params.get("sort")), request.query_params.getlist("expand")
        if wanted is None or _asks_for_unknown(request):
            return []
        with reading(doors.services.engine) as connection:
            page = catalog.list_adapters(connection, *page_of, wanted=wanted, order=order, reader=caller)
        if page.next_cursor:
            response.headers["Link"] = f'<{request.url.include_query_params(cursor=page.next_cursor)}>; rel="next"'
        return [only(listed_model(view), expand) for view in page.adapters]

    return router


def _page_of(limit: Annotated[int, Query(ge=1)] = _PAGE, cursor: str | None = None) -> tuple[int, str | None]:
    return min(limit, _PAGE), cursor


def _order(sort: str | None) -> catalog.Order:
    if sort is not None and sort not in _SORTS:
        raise InvalidRequest("models are not sorted so", path="sort", value=sort, hint=", ".join(sorted(_SORTS)))
    return _SORTS.get(sort or "", "name")


def _asks_for_unknown(request: Request) -> bool:
    asked = request.query_params
    return not _UNKNOWN_HERE.isdisjoint(asked) or asked.get("gated", "false").lower() != "false"


def _model_router(doors: Doors) -> APIRouter:
    router = APIRouter(route_class=HfRoute)

    @router.get(_ROOT)
    @waits_for_store
    def get_model(adapter: Name, blobs: bool = False, expand: Expand = None) -> View:
        return _describe(doors.services, adapter, MAIN, blobs, expand)

    @router.get(f"{_ROOT}/revision/{{revision:path}}")
    @waits_for_store
    def get_revision(adapter: Name, revision: str, blobs: bool = False, expand: Expand = None) -> View:
        return _describe(doors.services, adapter, revision, blobs, expand)

    @router.get(f"{_ROOT}/auth-check")
    def check_reading(adapter: Name) -> View:
        resolve(doors.services, adapter, MAIN)
        return {}

    @router.get(f"{_ROOT}/auth-check/write", dependencies=[Depends(doors.writer)])
    def check_writing(adapter: Name) -> View:
        resolve(doors.services, adapter, MAIN)
        return {}

    return router


def _describe(services: HubServices, adapter: AdapterName, revision: str, blobs: bool, expand: list[str] | None) -> View:
    found = resolve(services, adapter, revision)
    if isinstance(found, Repository):
        return only(empty_model(found), expand or [])
    shown = model_info(found, _beside(services, found), with_blobs=blobs)
    data = card_data(services, found) if not expand or {"cardData", "model-index"} & set(expand) else {}
    index = {"model-index": data["model-index"]} if "model-index" in data else {}
    return only(shown | {"cardData": data} | index, expand or [])


def _beside(services: HubServices, version: VersionView) -> list[FileEntry]:
    return [file.entry for file in signature_files(services, version)]


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
