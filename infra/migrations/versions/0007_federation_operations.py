"""What operators do to federations: going back, new keys for sites, troubles; and uploads in parts."""

import sqlalchemy as sa
from alembic import op

from infra.database import UtcTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the six tables."""
    _create_rollbacks()
    _create_former_keys()
    _create_rotations()
    _create_troubles()
    _create_uploads()
    _create_parts()


def _create_rollbacks() -> None:
    op.create_table(
        "federation_rollbacks",
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("to_round", sa.Integer(), nullable=False),
        sa.Column("start_digest", sa.String(71), nullable=False),
        sa.Column("opened_round", sa.Integer(), nullable=True),
        sa.Column("cancelled", sa.Text(), nullable=True),
        sa.Column("aliases", sa.Text(), nullable=False),
        sa.Column("person", sa.String(200), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("rolled_back_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_federation_rollbacks"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_federation_rollbacks_job_id"),
    )


def _create_former_keys() -> None:
    op.create_table(
        "federation_former_keys",
        sa.Column("public_key", sa.String(72), nullable=False),
        sa.Column("pseudonym", sa.String(128), nullable=False),
        sa.Column("replaced_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("public_key", name="pk_federation_former_keys"),
        sa.ForeignKeyConstraint(["pseudonym"], ["federation_sites.pseudonym"], name="fk_federation_former_keys_pseudonym"),
    )
    op.create_index("ix_federation_former_keys_pseudonym", "federation_former_keys", ["pseudonym"])


def _create_rotations() -> None:
    op.create_table(
        "federation_rotations",
        sa.Column("pseudonym", sa.String(128), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("person", sa.String(200), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("used_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("pseudonym", name="pk_federation_rotations"),
        sa.UniqueConstraint("token_hash", name="uq_federation_rotations_token_hash"),
        sa.ForeignKeyConstraint(["pseudonym"], ["federation_sites.pseudonym"], name="fk_federation_rotations_pseudonym"),
    )


def _create_troubles() -> None:
    op.create_table(
        "federation_troubles",
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("place", sa.String(64), nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("since", UtcTime(), nullable=False),
        sa.Column("next_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_federation_troubles"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_federation_troubles_job_id"),
    )


def _create_uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("part_bytes", sa.Integer(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
        sa.UniqueConstraint("owner", "digest", name="uq_uploads_owner_digest"),
    )
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"])


def _create_parts() -> None:
    op.create_table(
        "upload_parts",
        sa.Column("upload_id", sa.String(32), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("upload_id", "position", name="pk_upload_parts"),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name="fk_upload_parts_upload_id"),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("upload_parts", "uploads"):
        op.drop_table(table)
    for table in ("troubles", "rotations", "former_keys", "rollbacks"):
        op.drop_table(f"federation_{table}")
