"""What a request is refused for by its headers alone, before a byte of its body is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from starlette.types import Scope

from infra.auth import is_token
from infra.bodies import BODY_SECONDS
from wegeft.contracts.errors import InvalidRequest, Unauthenticated

PREFIX = "/api/v1"
"""Of our own API."""
_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HINT = "send Authorization: Bearer wgt_…; `wgctl up` prints where it is"
_API_PREFIX = "/api/"
_FORM = "application/x-www-form-urlencoded"
MAX_FORM_BYTES = 16_384
"""Of a form of a page, which brings its token in a cookie, or as a field of it."""
SITES_PREFIX = f"{PREFIX}/federation/"
"""Under it, sites sign what they send; they have no token."""
SITES_ENTRANCES = frozenset(f"{SITES_PREFIX}{name}" for name in ("enrolments", "invitations", "rotations"))
"""Where a site is known by the token that its body brings."""
_SIGNATURE = re.compile(r"ed25519:[0-9a-f]{128}\Z")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Lets a request in, or raises why not."""

    hosts: frozenset[str] | None = None
    """What ``Host`` may name, in small letters and without a port; None is anything."""
    body_seconds: float = BODY_SECONDS
    """How long a body may take, in the sense of :data:`BODY_SECONDS`."""
    knows: Callable[[str, str], bool] | None = None
    """Whether a token is good for a path, cheaply: the endpoint asks again, for its role too. Without it, any token's form will do."""

    async def check(self, scope: Scope) -> None:
        """Raise :class:`InvalidRequest` or :class:`Unauthenticated` where the request is refused."""
        self._check_host(_values(scope, b"host"))
        path: str = scope["path"]
        # Whatever the address: a door that somebody adds must not be one that strangers can lean on.
        if not _has_body(scope) or _is_form(scope):
            return
        if not path.startswith(SITES_PREFIX):
            await self._check_token(_values(scope, b"authorization"), path)
        elif path not in SITES_ENTRANCES:
            _check_signature(_values(scope, b"wegeft-signature"))

    async def _check_token(self, given: list[str], path: str) -> None:
        token = _token_in(given)
        if self.knows is not None and not await run_sync(self.knows, token, path):
            raise Unauthenticated(hint=_HINT)

    def _check_host(self, given: list[str]) -> None:
        # A page from elsewhere can make its own name point to this machine, and would then read our answers as its own.
        if self.hosts is not None and (len(given) != 1 or _without_port(given[0]) not in self.hosts):
            raise InvalidRequest(
                "the service is not called that", path="host", value=", ".join(given), hint="ask at its address, or set WEGEFT_PUBLIC_URL"
            )


def loopback_hosts(host: str, urls: Iterable[str]) -> frozenset[str] | None:
    """Return what ``Host`` may name where a service listens on ``host`` and is reached at ``urls``.

    None, which is anything, unless ``host`` is this machine's loopback: elsewhere a service has names that it does not know.
    """
    if not _is_loopback(host):
        return None
    return frozenset({*_OWN_NAMES, *(_without_port(urlsplit(url).netloc) for url in urls)})


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _without_port(text: str) -> str:
    host, colon, port = text.rpartition(":")
    return (host if colon and port.isdigit() else text).lower()


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _has_body(scope: Scope) -> bool:
    return bool(_values(scope, b"transfer-encoding")) or _values(scope, b"content-length") not in ([], ["0"])


def _is_form(scope: Scope) -> bool:
    """Whether this is a short form for one of the pages, which are all outside of the API."""
    kinds, lengths = _values(scope, b"content-type"), _values(scope, b"content-length")
    is_short = len(lengths) == 1 and len(lengths[0]) < 10 and lengths[0].isdigit() and int(lengths[0]) <= MAX_FORM_BYTES
    is_form = len(kinds) == 1 and kinds[0].partition(";")[0].strip().lower() == _FORM
    return is_short and is_form and not scope["path"].startswith(_API_PREFIX) and not _values(scope, b"transfer-encoding")


def _check_signature(given: list[str]) -> None:
    if len(given) != 1 or not _SIGNATURE.match(given[0]):
        raise Unauthenticated("the request is not signed", path="wegeft-signature", hint="ed25519: and 128 hex digits, by the site's key")


def _token_in(given: list[str]) -> str:
    scheme, _, token = given[0].partition(" ") if given else ("", "", "")
    if scheme.lower() != "bearer" or not is_token(token.strip()):
        raise Unauthenticated(hint=_HINT)
    return token.strip()
