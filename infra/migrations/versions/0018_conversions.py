"""Jobs that convert a version, and signatures of derived formats."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and an index; no job converts anything yet, and what is attached is signed when it is first asked for."""
    op.add_column("jobs", sa.Column("converted_digest", sa.String(71), nullable=True))
    op.create_index("ix_jobs_converted_digest", "jobs", ["converted_digest"])
    op.add_column("derived_formats", sa.Column("signature", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("derived_formats", "signature")
    op.drop_index("ix_jobs_converted_digest", "jobs")
    op.drop_column("jobs", "converted_digest")
