"""Federations: invitations, sites and their nonces; rounds, offers and what arrived."""

import sqlalchemy as sa
from alembic import op

from infra.database import UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ROUND = ["job_id", "number", "attempt"]


def upgrade() -> None:
    """Tell federated jobs apart, and add the seven tables."""
    op.add_column("jobs", sa.Column("is_federated", sa.Boolean(), nullable=False, server_default=sa.false()))
    _create_invitations()
    _create_sites()
    _create_nonces()
    _create_rounds()
    _create_offers()
    _create_arrivals()
    _create_blobs()


def _create_invitations() -> None:
    op.create_table(
        "federation_invitations",
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("is_approval", sa.Boolean(), nullable=False),
        sa.Column("invited_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("used_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_federation_invitations"),
        sa.UniqueConstraint("token_hash", name="uq_federation_invitations_token_hash"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_federation_invitations_job_id"),
    )


def _create_sites() -> None:
    op.create_table(
        "federation_sites",
        sa.Column("pseudonym", sa.String(128), nullable=False),
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("public_key", sa.String(72), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("max_examples", sa.BigInteger(), nullable=False),
        sa.Column("enrolled_at", UtcTime(), nullable=False),
        sa.Column("seen_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("pseudonym", name="pk_federation_sites"),
        sa.UniqueConstraint("job_id", "name", name="uq_federation_sites_job_id_name"),
        sa.UniqueConstraint("public_key", name="uq_federation_sites_public_key"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_federation_sites_job_id"),
    )


def _create_nonces() -> None:
    op.create_table(
        "federation_nonces",
        sa.Column("pseudonym", sa.String(128), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("seen_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("pseudonym", "nonce", name="pk_federation_nonces"),
        sa.ForeignKeyConstraint(["pseudonym"], ["federation_sites.pseudonym"], name="fk_federation_nonces_pseudonym"),
    )
    op.create_index("ix_federation_nonces_seen_at", "federation_nonces", ["seen_at"])


def _create_rounds() -> None:
    op.create_table(
        "federation_rounds",
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("since", UtcTime(), nullable=False),
        sa.Column("start_digest", sa.String(71), nullable=False),
        sa.Column("members", sa.Text(), nullable=True),
        sa.Column("closed_at", UtcTime(), nullable=True),
        sa.Column("result_digest", sa.String(71), nullable=True),
        sa.Column("record", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint(*_ROUND, name="pk_federation_rounds"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_federation_rounds_job_id"),
    )


def _create_offers() -> None:
    op.create_table(
        "federation_offers",
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("pseudonym", sa.String(128), nullable=False),
        sa.Column("offer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint(*_ROUND, "pseudonym", name="pk_federation_offers"),
        sa.ForeignKeyConstraint(["pseudonym"], ["federation_sites.pseudonym"], name="fk_federation_offers_pseudonym"),
        sa.ForeignKeyConstraint(
            _ROUND, [f"federation_rounds.{name}" for name in _ROUND], name="fk_federation_offers_job_id_number_attempt"
        ),
    )


def _create_arrivals() -> None:
    offer = [*_ROUND, "pseudonym"]
    op.create_table(
        "federation_arrivals",
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("pseudonym", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("received_at", UtcTime(), nullable=False),
        sa.Column("reason", sa.String(32), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("problems", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint(*offer, "digest", name="pk_federation_arrivals"),
        sa.ForeignKeyConstraint(
            offer, [f"federation_offers.{name}" for name in offer], name="fk_federation_arrivals_job_id_number_attempt_pseudonym"
        ),
    )


def _create_blobs() -> None:
    offer = [*_ROUND, "pseudonym"]
    op.create_table(
        "federation_blobs",
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("pseudonym", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.PrimaryKeyConstraint(*offer, "digest", name="pk_federation_blobs"),
        sa.ForeignKeyConstraint(
            offer, [f"federation_offers.{name}" for name in offer], name="fk_federation_blobs_job_id_number_attempt_pseudonym"
        ),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("blobs", "arrivals", "offers", "rounds", "nonces", "sites", "invitations"):
        op.drop_table(f"federation_{table}")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("is_federated")
