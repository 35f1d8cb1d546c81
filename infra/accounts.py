"""The HTTP API of accounts: who am I, and an admin's tokens."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy import Engine

from infra.auth import Guard, Principal, Role, create_token, list_tokens, revoke_token
from infra.database import reading, writing
from infra.http import API_PREFIX
from wegeft.contracts.accounts import Identity, NewToken, TokenRequest, TokenView
from wegeft.contracts.errors import InvalidRequest


def make_router(engine: Engine, guard: Guard, clock: Callable[[], datetime]) -> APIRouter:
    """Return the routes ``/whoami`` and ``/tokens``."""
    router = APIRouter(prefix=API_PREFIX, tags=["accounts"])
    admin = [Depends(guard.require(Role.ADMIN))]

    @router.get("/whoami", summary="Who the token belongs to")
    def whoami(caller: Annotated[Principal, Depends(guard.require(Role.READ))]) -> Identity:
        return Identity(name=caller.name, role=caller.role.value)

    @router.post("/tokens", status_code=201, dependencies=admin, summary="Make a token; its secret is shown this once")
    def post_token(request: TokenRequest) -> NewToken:
        if request.expires_at is not None and request.expires_at.tzinfo is None:
            raise InvalidRequest(
                "a moment needs a time zone", path="expires_at", value=request.expires_at.isoformat(), hint="end it with Z"
            )
        with writing(engine) as connection:
            token_id, token = create_token(connection, request.name, request.role, clock(), request.expires_at)
        return NewToken(id=token_id, token=token)

    @router.get("/tokens", dependencies=admin, summary="Every token, without its secret")
    def get_tokens() -> list[TokenView]:
        with reading(engine) as connection:
            return [TokenView.model_validate(vars(token)) for token in list_tokens(connection)]

    @router.delete("/tokens/{token_id}", status_code=204, dependencies=admin, summary="Make a token worthless")
    def delete_token(token_id: str) -> None:
        with writing(engine) as connection:
            revoke_token(connection, token_id, clock())

    return router
