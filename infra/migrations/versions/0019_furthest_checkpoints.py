"""A job knows the furthest step that any checkpoint of it has reached, from which a later one may have gone back."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_STEP = {"sqlite": "json_extract(resume_from, '$.step')", "postgresql": "CAST(resume_from ->> 'step' AS INTEGER)"}


def upgrade() -> None:
    """Add the column; of jobs that go on, the checkpoint that they have is the furthest known."""
    op.add_column("jobs", sa.Column("checkpoint_step", sa.Integer(), nullable=False, server_default="0"))
    op.execute(f"UPDATE jobs SET checkpoint_step = COALESCE({_STEP[op.get_bind().dialect.name]}, 0) WHERE resume_from IS NOT NULL")  # noqa: S608


def downgrade() -> None:
    """Drop it."""
    op.drop_column("jobs", "checkpoint_step")
