"""Signing in with a token and signing out; the frame's own files."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse, RedirectResponse

from hub.web.calls import Calls, api_path
from hub.web.frame import SIGN_IN, Frame
from hub.web.sessions import VISIT_COOKIE, close_session, note_visit, open_session, proof_for, read_form, token_of
from infra.auth import is_token
from wegeft.contracts.accounts import Identity
from wegeft.contracts.errors import NotFound, Unauthenticated

_STATIC = Path(__file__).parent / "static"
_FILES = {"style.css": "text/css; charset=utf-8", "live.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"}
_WRONG = "This token is wrong, expired or revoked."


def make_router(frame: Frame) -> APIRouter:
    """Return the routes under ``/-/`` that every page stands on."""
    router = APIRouter(include_in_schema=False)

    @router.get("/-/static/{name}")
    def get_static(name: str) -> Response:
        if name not in _FILES:
            raise NotFound("there is nothing at this address", path="path", value=name)
        return FileResponse(_STATIC / name, media_type=_FILES[name], headers={"Cache-Control": "public, max-age=300"})

    @router.get(SIGN_IN)
    async def get_sign_in(request: Request) -> Response:
        return _form(frame, request, request.query_params.get("next", "/"), None)

    @router.post(SIGN_IN)
    async def post_sign_in(request: Request) -> Response:
        fields = await read_form(request, request.cookies.get(VISIT_COOKIE))
        token, following = fields.get("token", "").strip(), _own_path(fields.get("next", "/"))
        if not is_token(token):
            return _form(frame, request, following, _WRONG)
        try:
            await Calls(request, token).get(api_path("whoami"), Identity)
        except Unauthenticated:
            return _form(frame, request, following, _WRONG)
        answer = RedirectResponse(following, 303)
        open_session(answer, request, token)
        return answer

    @router.post("/-/sign-out")
    async def post_sign_out(request: Request) -> Response:
        await read_form(request, token_of(request))
        answer = RedirectResponse(SIGN_IN, 303)
        close_session(answer)
        return answer

    return router


def _form(frame: Frame, request: Request, following: str, problem: str | None) -> Response:
    holder = Response()
    proof = proof_for(note_visit(holder, request))
    values = {"next": _own_path(following), "problem": problem, "form_proof": proof}
    page = frame.render("sign_in.html", SIGN_IN, values, 401 if problem else 200)
    page.raw_headers.extend(pair for pair in holder.raw_headers if pair[0] == b"set-cookie")
    return page


def _own_path(text: str) -> str:
    """Return where to go after signing in: a path of ours, and nothing that a browser could take for another site's."""
    found = urlsplit(text)
    is_ours = text.startswith("/") and not text.startswith(("//", "/\\")) and not found.netloc and text.isprintable() and "\\" not in text
    return text if is_ours else "/"
