"""Organisations and their members, as the API takes and answers them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wegeft.contracts.accounts import RoleName
from wegeft.contracts.adapter import WRITTEN_SEGMENT


class OrganisationRequest(BaseModel):
    """An organisation to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(json_schema_extra={"pattern": f"^{WRITTEN_SEGMENT}$"})
    """Of the organisation, and of the namespace that it gets."""


class MemberView(BaseModel):
    """An account in an organisation."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    account: str
    role: RoleName
    added_at: datetime


class OrganisationView(BaseModel):
    """A namespace that the caller owns or is a member of."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    kind: Literal["account", "organisation"]
    new_adapters: Literal["private", "public"]
    """Who sees an adapter that is new in it, unless its author says otherwise."""
    members: tuple[MemberView, ...]
    created_at: datetime


class MemberRole(BaseModel):
    """What a member may do: see what is private, publish too, or look after all of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: RoleName
