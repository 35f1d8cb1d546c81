"""Derived formats that are attached to versions, and aliases that only admins move."""

import sqlalchemy as sa
from alembic import op

from infra.database import UtcTime

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the column; no alias is protected yet."""
    op.create_table(
        "derived_formats",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("dtype", sa.String(16), nullable=False),
        sa.Column("holder", sa.String(220), nullable=False),
        sa.Column("files", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("base_model", sa.String(4200), nullable=False),
        sa.Column("base_config_digest", sa.String(71), nullable=True),
        sa.Column("largest_error", sa.Float(53), nullable=False),
        sa.Column("largest_error_layer", sa.String(400), nullable=False),
        sa.Column("layers", sa.Integer(), nullable=False),
        sa.Column("made_by", sa.String(400), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("kept_until", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_derived_formats"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_derived_formats_version_id"),
        sa.UniqueConstraint("holder", name="uq_derived_formats_holder"),
        sa.UniqueConstraint("version_id", "format", "dtype", name="uq_derived_formats_version_id_format_dtype"),
    )
    op.create_index("ix_derived_formats_format_version_id", "derived_formats", ["format", "version_id"])
    op.create_index("ix_derived_formats_kept_until", "derived_formats", ["kept_until"])
    op.add_column("aliases", sa.Column("is_protected", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("aliases", "is_protected")
    op.drop_table("derived_formats")
