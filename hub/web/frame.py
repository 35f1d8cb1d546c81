"""The frame around every page: its templates, its headers, who visits, and what the navigation leads to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from hub.cards import render_card
from hub.web import showing
from hub.web.calls import Calls, api_path
from hub.web.sessions import proof_for, token_of
from infra.auth import Role
from wegeft.contracts.accounts import Identity
from wegeft.contracts.errors import ErrorBody, Unauthenticated

SIGN_IN = "/-/sign-in"
_API_PREFIXES = ("/api/", "/v2/")
_TEMPLATES = Path(__file__).parent / "templates"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
        " base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "private, no-store",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

CardRenderer = Callable[[str], str]
_HEADING = re.compile(r"<(/?)h([1-5])>")
"""Makes safe HTML of a card's Markdown."""


def safe_card(text: str) -> str:
    """Return a card as HTML that cannot steer the page, its headings one level below the page's own."""
    return Markup(_HEADING.sub(_lower, render_card(text)))  # noqa: S704 - what the renderer lets through is safe


def _lower(heading: re.Match[str]) -> str:
    return f"<{heading[1]}h{int(heading[2]) + 1}>"


@dataclass(frozen=True, kw_only=True)
class NavigationEntry:
    """A place that every page leads to."""

    title: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One request of somebody who may have signed in."""

    request: Request
    calls: Calls
    identity: Identity | None
    proof: str | None
    """What forms carry; None for who has not signed in."""

    @property
    def may_write(self) -> bool:
        """Whether the visitor may change things; the API decides again."""
        return self.identity is not None and Role(self.identity.role).covers(Role.WRITE)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Renders pages."""

    clock: Callable[[], datetime]
    navigation: tuple[NavigationEntry, ...]
    render_card: CardRenderer = safe_card
    templates: tuple[Path, ...] = ()
    """Folders of other rooms' templates."""

    @cached_property
    def _environment(self) -> Environment:
        loader = FileSystemLoader([_TEMPLATES, *self.templates])
        environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        shown: dict[str, Callable[..., Any]] = {
            "bytes": showing.show_bytes,
            "number": showing.show_number,
            "digest": showing.show_digest,
            "model": showing.show_model,
            "words": showing.show_words,
            "duration": showing.show_duration,
            "time": self._show_time,
        }
        environment.filters.update(shown)
        environment.globals["path_to"] = path_to
        return environment

    def _show_time(self, moment: datetime) -> Markup:
        text = Markup('<time datetime="{}" title="{}">{}</time>')
        return text.format(moment.isoformat(), showing.show_exact(moment), showing.show_ago(moment, self.clock()))

    async def visit(self, request: Request) -> Visit:
        """Return who asks; raise :class:`Unauthenticated` where their token is no good any more."""
        token = token_of(request)
        calls = Calls(request, token)
        identity = await calls.get(api_path("whoami"), Identity) if token else None
        return Visit(request=request, calls=calls, identity=identity, proof=proof_for(token) if token else None)

    async def require(self, request: Request) -> Visit:
        """Return who asks; raise :class:`Unauthenticated` where nobody signed in."""
        visit = await self.visit(request)
        if visit.identity is None:
            raise Unauthenticated("sign in to see this page")
        return visit

    def page(self, template: str, visit: Visit, values: Mapping[str, Any], status: int = 200) -> Response:
        """Return a page for a visitor."""
        shown = {"identity": visit.identity, "proof": visit.proof, "may_write": visit.may_write, **values}
        return self.render(template, visit.request.url.path, shown, status)

    def render(self, template: str, path: str, values: Mapping[str, Any], status: int = 200) -> Response:
        """Return a page; ``values`` hold what its template names."""
        framed = {
            "identity": None,
            "proof": None,
            "may_write": False,
            "is_error": False,
            "navigation": self.navigation,
            "path": path,
            **values,
        }
        return HTMLResponse(self._environment.get_template(template).render(framed), status, headers=_HEADERS)

    def fragment(self, template: str, values: Mapping[str, Any]) -> Markup:
        """Return a part of a page, for a page to hold."""
        return Markup(self._environment.get_template(template).render(values))  # noqa: S704 - the template has escaped what is in it

    def error_page(self, scope: Scope, body: ErrorBody) -> Response | None:
        """Return the page that shows an error to a browser; None for every other caller, and for the API's addresses."""
        accepted = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")
        if "text/html" not in accepted or scope["path"].startswith(_API_PREFIXES):
            return None
        if body.status == 401 and scope["method"] in ("GET", "HEAD"):
            asked = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
            return RedirectResponse(f"{SIGN_IN}?{urlencode({'next': asked})}", 303, headers=_HEADERS)
        return self.render("error.html", scope["path"], {"error": body, "is_error": True}, body.status)


def path_to(*parts: object) -> str:
    """Return a path of ours, its parts quoted; an adapter's name brings its own slash."""
    return "/" + "/".join(quote(str(part), safe="/@-._~") for part in parts)
