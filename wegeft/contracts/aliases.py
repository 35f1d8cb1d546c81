"""Who may move a name that versions have."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class AliasProtection(BaseModel):
    """Who may move and delete an alias."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    is_protected: bool
    """Only admins of the adapter, or everybody who may publish to it."""
