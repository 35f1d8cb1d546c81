"""What a collection of bytes that nobody needs would do, and what it did."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class UnheldBlob(BaseModel):
    """Bytes that nobody needs any more."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    digest: str
    size: int | None
    """Bytes; None where they never all came."""


class CollectionPlan(BaseModel):
    """What is stored, and what a collection would delete."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stored_blobs: int
    stored_bytes: int
    unheld_blobs: int
    """Blobs that a collection would delete now."""
    unheld_bytes: int
    first: tuple[UnheldBlob, ...] = ()
    """Some of them, by digest."""
    formats: int = 0
    """Derived formats that are attached to versions; they are stored too, and can be made again."""
    format_bytes: int = 0
    unused_formats: int = 0
    """Those that a collection would forget now, because nobody has fetched them for long."""


class Collected(BaseModel):
    """What a collection deleted."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    blobs: int
    bytes: int
    is_done: bool
    """Whether nothing was left to delete; otherwise ask again."""
