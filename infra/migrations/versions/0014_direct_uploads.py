"""Uploads that clients send to the S3 server themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("uploads", sa.Column("multipart", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop it; what such uploads have left in the store is the bucket's lifecycle to clear."""
    op.drop_column("uploads", "multipart")
