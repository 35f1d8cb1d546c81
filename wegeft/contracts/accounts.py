"""Who calls and what tokens there are, as the API answers."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

RoleName = Literal["read", "write", "admin"]


class Identity(BaseModel):
    """Who a token belongs to."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    role: RoleName
    scopes: tuple[str, ...] = ()
    """What the token is limited to; empty where it may do all that its account may."""


class TokenRequest(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    """The account that it speaks for; your own where it is not given."""
    role: RoleName | None = None
    """What it may do; this or ``scopes`` must be given."""
    scopes: tuple[str, ...] = Field(default=(), max_length=50)
    """What it is limited to: ``read:acme``, ``write:acme/helper``."""
    expires_at: datetime | None = None
    """With a time zone; None is never, or as soon as the token that it is made with."""


class TokenView(BaseModel):
    """A token as it may be shown."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    name: str
    role: RoleName
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    scopes: tuple[str, ...] = ()
    made_by: str | None = None
    """Id of the token that it was made with."""
    last_used_at: datetime | None = None
    """To the hour."""


class NewToken(BaseModel):
    """A token that was just made; its secret is never shown again."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    token: str = Field(repr=False)
