"""The hub's pages: searching and browsing adapters, an adapter, a version, a namespace."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import RedirectResponse

from hub.catalog import Order
from hub.web.calls import api_path
from hub.web.frame import Frame, Visit, path_to
from hub.web.sessions import read_form, token_of
from hub.web.snippets import snippets_for
from wegeft.contracts.adapter import (
    CARD_FILE,
    RESERVED_NAMES,
    AdapterFacets,
    AdapterPage,
    AdapterView,
    AliasMove,
    VersionPage,
    VersionView,
    check_alias,
)
from wegeft.contracts.card import CardView
from wegeft.contracts.errors import InvalidInput, InvalidRequest, Problem
from wegeft.contracts.formats import FormatList

PAGE_SIZE = 30
_VERSIONS_SHOWN = 20
_CARD_CHARACTERS = 200_000
_LISTED = ("search", "namespace", "base_model", "method", "rank", "task", "license", "format", "signed", "attached")
_SEVERAL = ("tag", "metric")
_ORDERS: tuple[tuple[Order, str], ...] = (("updated", "Last published"), ("created", "Newest"), ("name", "Name"), ("size", "Largest"))


class _Segment(Convertor[str]):
    """A namespace: anything but the first words of our other addresses."""

    regex = "(?!(?:" + "|".join(sorted(RESERVED_NAMES)).replace(".", r"\.") + r")(?:/|$))[A-Za-z0-9][A-Za-z0-9._-]{0,95}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("namespace", _Segment())


def make_router(frame: Frame) -> APIRouter:
    """Return the routes of the hub's pages; they come after every other route, for a namespace can be called almost anything."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def get_front(request: Request) -> Response:
        return await _list(frame, await frame.visit(request), None)

    @router.get("/{namespace:namespace}")
    async def get_namespace(request: Request, namespace: str) -> Response:
        return await _list(frame, await frame.visit(request), namespace)

    @router.get("/{namespace:namespace}/{name}")
    async def get_adapter(request: Request, namespace: str, name: str) -> Response:
        return await _show_adapter(frame, await frame.visit(request), (namespace, name))

    @router.get("/{namespace:namespace}/{name}/versions/{selector}")
    async def get_version(request: Request, namespace: str, name: str, selector: str) -> Response:
        visit = await frame.visit(request)
        version = await visit.calls.get(api_path("adapters", namespace, name, "versions", selector), VersionView)
        adapter = await visit.calls.get(api_path("adapters", namespace, name), AdapterView)
        formats = await visit.calls.get(api_path("adapters", namespace, name, "versions", str(version.version), "formats"), FormatList)
        values = {
            "version": version,
            "card": await _card(frame, visit, version),
            "snippets": snippets_for(version, _origin(request), adapter.task),
            "formats": formats,
        }
        return frame.page("version.html", visit, values)

    _add_files(router, frame)
    _add_alias(router, frame)
    return router


def _add_files(router: APIRouter, frame: Frame) -> None:
    @router.get("/{namespace:namespace}/{name}/versions/{selector}/files/{path:path}")
    async def get_file(request: Request, namespace: str, name: str, selector: str, path: str) -> Response:
        visit = await frame.require(request)
        return visit.calls.forward(api_path("adapters", namespace, name, "versions", selector, "files", path))

    @router.get("/{namespace:namespace}/{name}/versions/{selector}/formats/{format}/{dtype}/files/{path:path}")
    async def get_format_file(request: Request) -> Response:
        visit, place = await frame.require(request), request.path_params
        named = (place["namespace"], place["name"], "versions", place["selector"])
        return visit.calls.forward(api_path("adapters", *named, "formats", place["format"], place["dtype"], "files", place["path"]))


def _add_alias(router: APIRouter, frame: Frame) -> None:
    @router.post("/{namespace:namespace}/{name}/aliases")
    async def post_alias(request: Request, namespace: str, name: str) -> Response:
        fields = await read_form(request, token_of(request))
        visit = await frame.require(request)
        move = AliasMove(version=_number(fields, "version"), expected=_number(fields, "expected"))
        alias = check_alias(fields.get("alias", "").strip())
        await visit.calls.send("PUT", api_path("adapters", namespace, name, "aliases", alias), move)
        return RedirectResponse(path_to(namespace, name) + "#aliases", 303)


def _number(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "").strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidRequest("not a version's number", path=name, value=text, hint="a whole number, for example 3")
    return int(text)


def _origin(request: Request) -> str:
    return f"{request.url.scheme}://{request.headers.get('host', request.url.netloc)}"


async def _list(frame: Frame, visit: Visit, namespace: str | None) -> Response:
    given = visit.request.query_params
    asked: dict[str, Any] = {name: given[name] for name in (*_LISTED, "order", "after") if given.get(name)}
    asked |= {name: values for name in _SEVERAL if (values := [value for value in given.getlist(name) if value])}
    if namespace is not None:
        asked["namespace"] = namespace
    query, problems, status = {"order": "updated", "limit": PAGE_SIZE, **asked}, (), 200
    page, facets = AdapterPage(adapters=(), next_cursor=None), AdapterFacets(counted=0, is_complete=True, facets={})
    try:
        page = await visit.calls.get(api_path("adapters"), AdapterPage, query)
        counted = {name: value for name, value in asked.items() if name not in ("order", "after")}
        facets = await visit.calls.get(api_path("adapters", "facets"), AdapterFacets, counted)
    except InvalidInput as error:
        problems, status = _readable(error.problems), error.http_status
    shown: dict[str, Any] = {
        "page": page,
        "facets": facets,
        "asked": dict.fromkeys((*_LISTED, *_SEVERAL, "order", "after")) | asked,
        "is_narrowed": bool(asked.keys() - {"order", "after", "namespace" if namespace else ""}),
        "problems": problems,
        "namespace": namespace,
        "orders": _ORDERS,
        "link": _Links(visit.request.url.path, {name: value for name, value in asked.items() if not (namespace and name == "namespace")}),
    }
    return frame.page("list.html", visit, shown, status)


def _readable(problems: tuple[Problem, ...]) -> Any:
    return tuple(problem.model_copy(update={"path": problem.path.removeprefix("query.")}) for problem in problems)


class _Links:
    """Makes addresses of a list that differ in one thing from the one that is shown."""

    def __init__(self, path: str, asked: dict[str, Any]) -> None:
        self._path = path
        self._asked = asked

    def __call__(self, **changes: Any) -> str:
        """Return the address with some parameters changed; a page begins anew unless ``after`` is given."""
        return self._address({**self._asked, "after": None, **changes})

    def adding(self, name: str, value: str) -> str:
        """Return the address with a facet's value asked for as well."""
        if name in _SEVERAL:
            return self(**{name: [*dict.fromkeys([*self._asked.get(name, []), value])]})
        return self(**{name: value})

    def without(self, name: str, value: str) -> str:
        """Return the address without a value that is asked for."""
        kept = [other for other in self._asked[name] if other != value] if name in _SEVERAL else None
        return self(**{name: kept})

    @property
    def chosen(self) -> list[tuple[str, str]]:
        """What is asked for beside words, one by one."""
        pairs = [(name, value) for name in _LISTED[1:] if (value := self._asked.get(name))]
        return pairs + [(name, value) for name in _SEVERAL for value in self._asked.get(name, [])]

    def _address(self, asked: dict[str, Any]) -> str:
        query = urlencode({name: value for name, value in asked.items() if value}, doseq=True)
        return f"{self._path}?{query}" if query else self._path


async def _show_adapter(frame: Frame, visit: Visit, named: tuple[str, str]) -> Response:
    adapter = await visit.calls.get(api_path("adapters", *named), AdapterView)
    after = visit.request.query_params.get("after") or None
    versions = await visit.calls.get(api_path("adapters", *named, "versions"), VersionPage, {"limit": _VERSIONS_SHOWN, "after": after})
    latest = await visit.calls.get(api_path("adapters", *named, "versions", "latest"), VersionView)
    values = {
        "adapter": adapter,
        "versions": versions,
        "latest": latest,
        "is_first": after is None,
        "card": await _newest_card(frame, visit, named),
        "snippets": snippets_for(latest, _origin(visit.request), adapter.task),
    }
    return frame.page("adapter.html", visit, values)


async def _newest_card(frame: Frame, visit: Visit, named: tuple[str, str]) -> str | None:
    card = await visit.calls.get(api_path("adapters", *named, "card"), CardView)
    return frame.render_card(card.markdown[:_CARD_CHARACTERS]) if card.markdown.strip() else None


async def _card(frame: Frame, visit: Visit, version: VersionView) -> str | None:
    if all(entry.path != CARD_FILE for entry in version.manifest.files):
        return None
    namespace, _, name = version.adapter.partition("/")
    text = await visit.calls.text(api_path("adapters", namespace, name, "versions", str(version.version), "files", CARD_FILE))
    return frame.render_card(text[:_CARD_CHARACTERS]) if text.strip() else None
