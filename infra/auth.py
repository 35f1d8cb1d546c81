"""Who is calling: bearer tokens, hashed at rest, and the guard at every door."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Column, Connection, Engine, Row, String, Table, Text, bindparam, func, insert, or_, select, update

from infra import audit
from infra.calling import current_call
from infra.database import METADATA, UtcTime, reading, writing
from infra.principals import Principal, Role, Scope, parse_role
from wegeft.contracts.errors import DatabaseUnavailable, Forbidden, InvalidRequest, NotFound, StorageFull, Unauthenticated

__all__ = [  # roles and callers for who guards a door, and all that is below
    "BEARER",
    "TOKENS",
    "Check",
    "Credentials",
    "Guard",
    "Principal",
    "Role",
    "TokenGrant",
    "TokenInfo",
    "authenticate",
    "bearer_of",
    "create_token",
    "grant_token",
    "hash_secret",
    "is_account",
    "is_attempt_token",
    "is_same_secret",
    "is_token",
    "list_tokens",
    "make_attempt_token",
    "note_use",
    "parse_role",
    "revoke_token",
]

TOKENS = Table(
    "tokens",
    METADATA,
    Column("id", String(12), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("secret_hash", String(64), nullable=False),
    Column("created_at", UtcTime(), nullable=False),
    Column("expires_at", UtcTime(), nullable=True),
    Column("revoked_at", UtcTime(), nullable=True),
    Column("scopes", Text(), nullable=True),  # with spaces between them; none is all that the account may do
    Column("made_by", String(12), nullable=True),  # the token that it was made with
    Column("last_used_at", UtcTime(), nullable=True),  # to the hour
)

BEARER = HTTPBearer(auto_error=False, description="A token made by `wgctl token create` or by `wgctl up`.")
"""The security scheme that the API's description names; it never answers by itself."""

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
"""What a request's ``Authorization`` header holds, as a FastAPI parameter."""

USE_IS_NOTED_EVERY = timedelta(hours=1)

_SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._@-]{0,62}[A-Za-z0-9])?\Z")
_USER_TOKEN = re.compile(r"wgt_([0-9a-f]{12})_([0-9a-f]{64})\Z")
_ATTEMPT_TOKEN = re.compile(r"wga_[0-9a-f]{64}\Z")
_NO_HASH = "0" * 64
_ASKED = ("id", "name", "role", "secret_hash", "expires_at", "revoked_at", "scopes", "last_used_at")
_BY_ID = select(*(TOKENS.c[name] for name in _ASKED)).where(TOKENS.c.id == bindparam("token_id"))
"""Asked by every request: made once, because making it takes as long as asking."""


@dataclass(frozen=True, kw_only=True)
class TokenInfo:
    """A token as it may be shown: never its secret."""

    id: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    scopes: tuple[str, ...]
    made_by: str | None
    last_used_at: datetime | None
    """To the hour."""


@dataclass(frozen=True, kw_only=True)
class TokenGrant:
    """What a new token shall be good for."""

    name: str
    """Of the account that it speaks for."""
    role: Role | str
    expires_at: datetime | None = None
    scopes: tuple[Scope, ...] = ()
    made_by: str | None = None


def hash_secret(secret: str) -> str:
    """Return the sha256 that is stored for a secret; secrets hold 256 random bits, so no salt or slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_same_secret(secret: str, secret_hash: str) -> bool:
    """Return whether ``secret`` has this hash, in time that does not tell where they differ."""
    return hmac.compare_digest(hash_secret(secret), secret_hash)


def make_attempt_token() -> str:
    """Return a new secret for one attempt, ``wga_`` and 256 random bits in hex."""
    return f"wga_{secrets.token_hex(_SECRET_BYTES)}"


def is_attempt_token(text: str) -> bool:
    """Return whether ``text`` has the form of an attempt's token."""
    return bool(_ATTEMPT_TOKEN.match(text))


def is_token(text: str) -> bool:
    """Return whether ``text`` has the form of a token, an attempt's or another."""
    return bool(_USER_TOKEN.match(text) or _ATTEMPT_TOKEN.match(text))


def create_token(connection: Connection, name: str, role: Role | str, now: datetime, expires_at: datetime | None = None) -> tuple[str, str]:
    """Store a new token without scopes and return its id and the token itself; see :func:`grant_token`."""
    return grant_token(connection, TokenGrant(name=name, role=role, expires_at=expires_at), now)


def grant_token(connection: Connection, grant: TokenGrant, now: datetime) -> tuple[str, str]:
    """Store a new token and return its id and the token itself, which cannot be read again.

    Raises :class:`InvalidRequest` for a name, role or expiry that cannot be.
    """
    if not _NAME.match(grant.name):
        raise InvalidRequest("not a token's name", path="name", value=grant.name, hint="1 to 64 of A-Z a-z 0-9 space . _ @ -")
    if grant.expires_at is not None:
        _check_expiry(grant.expires_at, now)
    token_id, secret, role = secrets.token_hex(6), secrets.token_hex(_SECRET_BYTES), parse_role(grant.role).value
    scopes = [str(scope) for scope in grant.scopes]
    row = {"id": token_id, "name": grant.name, "role": role, "secret_hash": hash_secret(secret), "made_by": grant.made_by}
    kept = {"scopes": " ".join(scopes) or None, "created_at": now, "expires_at": grant.expires_at}
    connection.execute(insert(TOKENS).values(**row, **kept))
    expiry = grant.expires_at.isoformat() if grant.expires_at else None
    audit.note(connection, "token.create", token_id, now, name=grant.name, role=role, scopes=[*scopes], expires_at=expiry)
    return token_id, f"wgt_{token_id}_{secret}"


def _check_expiry(expires_at: datetime, now: datetime) -> None:
    if expires_at <= now:
        raise InvalidRequest("the token would have expired already", path="expires_at", value=expires_at.isoformat())
    try:
        expires_at.astimezone(UTC)
    except OverflowError:
        hint = "leave it out for a token that never expires"
        raise InvalidRequest("a moment after the last year", path="expires_at", value=expires_at.isoformat(), hint=hint) from None


def list_tokens(connection: Connection, token_id: str | None = None) -> tuple[TokenInfo, ...]:
    """Return every token, oldest first, the revoked and expired ones too; only the one with an id where that is given."""
    query = select(TOKENS).order_by(TOKENS.c.created_at, TOKENS.c.id)
    rows = connection.execute(query if token_id is None else query.where(TOKENS.c.id == token_id))
    return tuple(_info(row) for row in rows)


def _info(row: Row[tuple[object, ...]]) -> TokenInfo:
    return TokenInfo(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        scopes=tuple((row.scopes or "").split()),
        made_by=row.made_by,
        last_used_at=row.last_used_at,
    )


def is_account(connection: Connection, name: str) -> bool:
    """Return whether any token, good or not, speaks for the account, whatever the case of its name."""
    return connection.execute(select(TOKENS.c.id).where(func.lower(TOKENS.c.name) == name.lower()).limit(1)).first() is not None


def revoke_token(connection: Connection, token_id: str, now: datetime) -> None:
    """Make the token worthless from now on; harmless when it is already. Raises :class:`NotFound` where there is none."""
    is_known = connection.execute(select(TOKENS.c.id).where(TOKENS.c.id == token_id)).first() is not None
    if not is_known:
        raise NotFound("there is no such token", path="token", value=token_id)
    revoked = update(TOKENS).where(TOKENS.c.id == token_id, TOKENS.c.revoked_at.is_(None)).values(revoked_at=now)
    if connection.execute(revoked).rowcount:
        audit.note(connection, "token.revoke", token_id, now)


def authenticate(connection: Connection, token: str, now: datetime) -> Principal:
    """Return who holds ``token``; raise :class:`Unauthenticated` where it is malformed, unknown, wrong, expired or revoked."""
    match = _USER_TOKEN.match(token)
    if match is None:
        raise _refuse()
    row = connection.execute(_BY_ID, {"token_id": match.group(1)}).first()
    # An unknown id is compared too, so that an answer's time does not tell which ids exist.
    is_right = is_same_secret(match.group(2), row.secret_hash if row else _NO_HASH)
    if row is None or not is_right or row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
        raise _refuse()
    return Principal(
        name=row.name,
        role=Role(row.role),
        token_id=row.id,
        scopes=tuple(Scope.parse(text) for text in (row.scopes or "").split()),
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )


def note_use(engine: Engine, caller: Principal, now: datetime) -> None:
    """Note that a token is in use, once an hour; a database that cannot take this down does not keep the caller out."""
    hour_ago = now - USE_IS_NOTED_EVERY
    if caller.last_used_at is not None and caller.last_used_at > hour_ago:
        return
    is_due = or_(TOKENS.c.last_used_at.is_(None), TOKENS.c.last_used_at <= hour_ago)
    with suppress(DatabaseUnavailable, StorageFull), writing(engine) as connection:
        connection.execute(update(TOKENS).where(TOKENS.c.id == caller.token_id, is_due).values(last_used_at=now))


def _refuse() -> Unauthenticated:
    return Unauthenticated(
        "the token is missing, wrong, expired or revoked", hint="send Authorization: Bearer wgt_…; `wgctl up` prints where it is"
    )


Check = Callable[[Connection, Principal, Mapping[str, str], Role], None]
"""Takes a connection, the caller, the parameters of the request's path and what the caller must be allowed to do with what they name.

Raises where the caller may not do it, and where the caller may not even know of it, exactly as if it were not there.
"""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Makes the dependencies that let a request in or refuse it."""

    engine: Engine
    clock: Callable[[], datetime]
    checks: tuple[Check, ...] = ()
    """Asked about every request, so that a new route cannot forget to."""

    def checking(self, check: Check) -> Guard:
        """Return a guard that asks ``check``, too."""
        return self if check in self.checks else replace(self, checks=(*self.checks, check))

    def require(self, role: Role | str, *, of_target: Role | None = None) -> Callable[..., Principal]:
        """Return a FastAPI dependency that answers who calls, and refuses a caller whose role does not cover ``role``.

        ``of_target`` is what the caller must be allowed to do with the adapter or job that the path names; ``role`` by default.
        """
        needed = parse_role(role)

        def principal(request: Request, credentials: Credentials) -> Principal:
            now = self.clock()
            with reading(self.engine) as connection:
                caller = authenticate(connection, bearer_of(credentials), now)
                if not caller.role.covers(needed):
                    raise Forbidden(
                        f"this needs the role {needed}", path="role", value=str(caller.role), hint="ask an admin for another token"
                    )
                for check in self.checks:
                    check(connection, caller, request.path_params, of_target or needed)
            note_use(self.engine, caller, now)
            call = current_call()
            call.actor, call.token_id, call.at = caller.name, caller.token_id, now
            return caller

        return principal


def bearer_of(credentials: HTTPAuthorizationCredentials | None) -> str:
    """Return the token of an ``Authorization: Bearer`` header; raise :class:`Unauthenticated` where there is none."""
    if credentials is None:
        raise _refuse()
    return credentials.credentials
