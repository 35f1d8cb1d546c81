"""The table of derived formats that are attached to versions."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from infra.database import METADATA, UtcTime

DERIVED_FORMATS = Table(
    "derived_formats",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("version_id", Integer, ForeignKey("versions.id"), nullable=False),
    Column("format", String(16), nullable=False),
    Column("dtype", String(16), nullable=False),
    Column("holder", String(220), nullable=False, unique=True),  # of its bytes, for as long as kept_until says
    Column("files", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("base_model", String(4200), nullable=False),
    Column("base_config_digest", String(71), nullable=True),
    Column("largest_error", Float(53), nullable=False),
    Column("largest_error_layer", String(400), nullable=False),
    Column("layers", Integer, nullable=False),
    Column("made_by", String(400), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("kept_until", UtcTime, nullable=False),  # moves on while somebody fetches it
    Column("signature", Text, nullable=True),  # the bundle as it was signed; none until the hub has a key
    UniqueConstraint("version_id", "format", "dtype"),
    Index(None, "format", "version_id"),
    Index(None, "kept_until"),
)
