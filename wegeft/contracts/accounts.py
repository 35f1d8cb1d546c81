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


class TokenRequest(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: RoleName
    expires_at: datetime | None = None
    """With a time zone; None is never."""


class TokenView(BaseModel):
    """A token as it may be shown."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    name: str
    role: RoleName
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewToken(BaseModel):
    """A token that was just made; its secret is never shown again."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    token: str = Field(repr=False)
