"""Who visits: a token in a cookie that no script reads and no other site's page sends, and forms that only our pages can post.

Nothing is kept here: the cookie is the token, and it ends with the token.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from infra.auth import is_token
from infra.gate import MAX_FORM_BYTES
from wegeft.contracts.errors import Forbidden, InvalidRequest

SESSION_COOKIE = "wegeft_session"
VISIT_COOKIE = "wegeft_visit"
"""Of somebody who has not signed in; a random text that the form for it is bound to."""
CSRF_FIELD = "csrf"
_SESSION_SECONDS = 30 * 86_400
_FORM = "application/x-www-form-urlencoded"


def token_of(request: Request) -> str | None:
    """Return the token that the visitor signed in with; None where there is none, or something else in its place."""
    found = request.cookies.get(SESSION_COOKIE, "")
    return found if is_token(found) else None


def open_session(response: Response, request: Request, token: str) -> None:
    """Let the browser keep the token."""
    _set(response, request, SESSION_COOKIE, token, _SESSION_SECONDS)
    response.delete_cookie(VISIT_COOKIE, path="/")


def close_session(response: Response) -> None:
    """Let the browser forget the token."""
    response.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict")


def note_visit(response: Response, request: Request) -> str:
    """Let the browser keep a random text, unless it has one; return it."""
    visit = request.cookies.get(VISIT_COOKIE, "")
    if len(visit) != 64 or not visit.isalnum():
        visit = secrets.token_hex(32)
        _set(response, request, VISIT_COOKIE, visit, None)
    return visit


def _set(response: Response, request: Request, name: str, value: str, seconds: int | None) -> None:
    is_secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    response.set_cookie(name, value, max_age=seconds, path="/", secure=is_secure, httponly=True, samesite="strict")


def proof_for(secret: str) -> str:
    """Return what a form carries to show that a page of ours made it, for who holds ``secret``."""
    return hmac.new(secret.encode(), b"wegeft-form-1", hashlib.sha256).hexdigest()


async def read_form(request: Request, secret: str | None) -> dict[str, str]:
    """Return the fields of a form of ours.

    Raises :class:`Forbidden` where another site's page sent it or its proof is missing or another's, and :class:`InvalidRequest`
    where it is no form.
    """
    _check_origin(request)
    fields = await _fields(request)
    proof = fields.pop(CSRF_FIELD, "")
    if secret is None or not hmac.compare_digest(proof.encode(), proof_for(secret).encode()):
        raise Forbidden("the form is not one of this session", path=CSRF_FIELD, hint="load the page again, and send it from there")
    return fields


def _check_origin(request: Request) -> None:
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    is_foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if is_foreign or site not in (None, "same-origin", "none"):
        raise Forbidden("the form was sent from another site", path="origin", value=origin)


async def _fields(request: Request) -> dict[str, str]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise InvalidRequest("not a form", path="content-type", hint=_FORM)
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_FORM_BYTES:
            raise InvalidRequest("the form is too long", hint=f"at most {MAX_FORM_BYTES} bytes")
    try:
        return dict(parse_qsl(content.decode("ascii"), keep_blank_values=True, max_num_fields=50, errors="strict"))
    except ValueError as error:
        raise InvalidRequest("not a form") from error
