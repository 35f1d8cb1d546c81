"""What a namespace may hold, and what it holds."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Bytes = Annotated[int, Field(ge=0, lt=2**63)]
_Count = Annotated[int, Field(ge=0, lt=2**31)]


class QuotaLimits(BaseModel):
    """The most that a namespace may hold; None is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: _Bytes | None = None
    """Of all versions' files and derived formats, deleted ones too until they are collected; what several share counts once."""
    adapters: _Count | None = None
    versions: _Count | None = None
    """Of all adapters together."""

    @property
    def is_none(self) -> bool:
        """Whether nothing is limited."""
        return self.bytes is None and self.adapters is None and self.versions is None


class Amounts(BaseModel):
    """What a namespace holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    bytes: int
    """Of its versions' files and their derived formats."""
    adapters: int
    versions: int
    deleted_bytes: int = 0
    """Of what was deleted or detached and is not collected yet; they count as the others do."""

    @property
    def counted_bytes(self) -> int:
        """Bytes that its limit is about."""
        return self.bytes + self.deleted_bytes


class QuotaView(BaseModel):
    """A namespace's quota."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    namespace: str
    limits: QuotaLimits
    used: Amounts
    staged_bytes: int = 0
    """Sent for it, or by the account of its name, and not named by any version yet."""
