"""What was deleted counts until it is collected; what an upload keeps room for beyond its bytes is noted apart, and lapses."""

import sqlalchemy as sa
from alembic import op

from infra.database import UtcTime

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and add the columns; what was deleted before counts no more, and open uploads count as they did."""
    op.create_table(
        "departed",
        sa.Column("namespace", sa.String(96), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("until", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "digest", name="pk_departed"),
    )
    op.create_index("ix_departed_until", "departed", ["until"])
    op.add_column("staged", sa.Column("ahead", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("staged", sa.Column("ahead_until", UtcTime(), nullable=True))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("staged", "ahead_until")
    op.drop_column("staged", "ahead")
    op.drop_table("departed")
