"""Adapters before their first version, tags, and what publishers say of a version."""

import sqlalchemy as sa
from alembic import op

from infra.database import UtcTime

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_VERSION = ["versions.adapter_id", "versions.number"]


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "repositories",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", name="pk_repositories"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_repositories_adapter_id"),
    )
    op.create_table(
        "tags",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("tag", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("deleted_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("adapter_id", "tag", name="pk_tags"),
        sa.ForeignKeyConstraint(["adapter_id", "number"], _VERSION, name="fk_tags_adapter_id_number"),
    )
    op.create_table(
        "commit_messages",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "number", name="pk_commit_messages"),
        sa.ForeignKeyConstraint(["adapter_id", "number"], _VERSION, name="fk_commit_messages_adapter_id_number"),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("commit_messages", "tags", "repositories"):
        op.drop_table(table)
