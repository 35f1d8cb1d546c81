"""What accounts have sent that no version names yet; what came before is counted once it is sent again."""

import sqlalchemy as sa
from alembic import op

from infra.database import UtcTime

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "staged",
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("token_id", sa.String(12), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("namespace", sa.String(96), nullable=True),
        sa.Column("until", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("account", "token_id", "digest", name="pk_staged"),
    )
    op.create_index("ix_staged_namespace", "staged", ["namespace"])
    op.create_index("ix_staged_until", "staged", ["until"])
    op.create_table("stagers", sa.Column("account", sa.String(64), nullable=False), sa.PrimaryKeyConstraint("account", name="pk_stagers"))


def downgrade() -> None:
    """Drop them."""
    op.drop_table("stagers")
    op.drop_table("staged")
