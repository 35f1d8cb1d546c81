"""Buffered federations: the order in which updates were accepted, and how far versions have come in it."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both columns, empty for what was synchronous."""
    op.add_column("federation_arrivals", sa.Column("position", sa.Integer(), nullable=True))
    op.add_column("federation_rounds", sa.Column("consumed", sa.Integer(), nullable=True))
    op.create_index("ix_federation_arrivals_job_id_position", "federation_arrivals", ["job_id", "position"], unique=True)


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_federation_arrivals_job_id_position", "federation_arrivals")
    with op.batch_alter_table("federation_rounds") as rounds:
        rounds.drop_column("consumed")
    with op.batch_alter_table("federation_arrivals") as arrivals:
        arrivals.drop_column("position")
