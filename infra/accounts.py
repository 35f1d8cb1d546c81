"""The HTTP API of accounts: who am I, and the tokens of an account."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from sqlalchemy import Engine

from infra import audit
from infra.auth import Guard, Principal, Role, TokenInfo, grant_token, list_tokens, revoke_token
from infra.database import reading, writing
from infra.http import API_PREFIX
from infra.offers import check_offer, may_manage
from infra.routers import Gathering
from wegeft.contracts.accounts import Identity, NewToken, TokenRequest, TokenView
from wegeft.contracts.audit import AuditPage
from wegeft.contracts.errors import NotFound

_LAST_NUMBER = 2**63 - 1


def make_router(engine: Engine, guard: Guard, clock: Callable[[], datetime]) -> APIRouter:
    """Return the routes ``/whoami``, ``/tokens`` and ``/audit``."""
    router = Gathering()
    router.include_router(_token_router(engine, guard, clock))
    router.include_router(_audit_router(engine, guard))
    return router


def _token_router(engine: Engine, guard: Guard, clock: Callable[[], datetime]) -> APIRouter:
    router = APIRouter(prefix=API_PREFIX, tags=["accounts"])
    Writer = Annotated[Principal, Depends(guard.require(Role.WRITE))]

    @router.get("/whoami", response_model_exclude_defaults=True, summary="Who the token belongs to")
    def whoami(caller: Annotated[Principal, Depends(guard.require(Role.READ))]) -> Identity:
        return Identity(name=caller.name, role=caller.role.value, scopes=tuple(str(scope) for scope in caller.scopes))

    @router.post("/tokens", status_code=201, summary="Make a token, never one that may do more; its secret is shown this once")
    def post_token(request: TokenRequest, caller: Writer) -> NewToken:
        grant = check_offer(caller, request)
        with writing(engine) as connection:
            token_id, token = grant_token(connection, grant, clock())
        return NewToken(id=token_id, token=token)

    @router.get("/tokens", summary="Your account's tokens, without their secrets; an administrator sees everybody's")
    def get_tokens(caller: Writer) -> list[TokenView]:
        with reading(engine) as connection:
            return [_view(token) for token in list_tokens(connection) if may_manage(caller, token)]

    @router.delete("/tokens/{token_id}", status_code=204, summary="Make a token worthless")
    def delete_token(token_id: str, caller: Writer) -> None:
        with writing(engine) as connection:
            found = next((token for token in list_tokens(connection, token_id) if may_manage(caller, token)), None)
            if found is None:
                raise NotFound("there is no such token", path="token", value=token_id)
            revoke_token(connection, found.id, clock())

    return router


def _view(token: TokenInfo) -> TokenView:
    return TokenView.model_validate(vars(token))


def _audit_router(engine: Engine, guard: Guard) -> APIRouter:
    router = APIRouter(prefix=API_PREFIX, tags=["audit"], dependencies=[Depends(guard.require(Role.ADMIN))])

    @router.get("/audit", summary="Every change, in its order, chained by hashes; for an administrator")
    def get_audit(
        after: Annotated[int, Query(ge=0, le=_LAST_NUMBER, description="Number of the last entry seen.")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 500,
    ) -> AuditPage:
        with reading(engine) as connection:
            return audit.read_page(connection, after, limit)

    return router
