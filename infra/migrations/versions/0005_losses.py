"""Attempts lost in a row: when to give a job up."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the count, none for the jobs that there are."""
    op.add_column("jobs", sa.Column("lost_in_a_row", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("lost_in_a_row")
