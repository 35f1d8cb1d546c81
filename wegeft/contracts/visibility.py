"""Who sees an adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Visibility = Literal["private", "public"]
"""Those who share the adapter's namespace, or everybody who may read."""


class VisibilityChange(BaseModel):
    """Who shall see an adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    visibility: Visibility
