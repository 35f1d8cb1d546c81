"""Listings say themselves whether an adapter is private and which tags it has, so that a list need not look elsewhere for either."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_PUBLIC = "UPDATE listings SET is_private = {false} WHERE adapter_id IN (SELECT id FROM adapters WHERE NOT is_private)"
_TAGS = (
    "UPDATE listings SET tags = (SELECT {joined} FROM (SELECT t.tag AS tag FROM listing_tags t WHERE t.version_id = listings.version_id"
    " ORDER BY t.tag {bytewise}) AS ordered) WHERE version_id IN (SELECT version_id FROM listing_tags)"
)


def upgrade() -> None:
    """Add the columns, and what they say of adapters that are there."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    op.add_column("listings", sa.Column("is_private", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("listings", sa.Column("tags", sa.Text(), nullable=False, server_default=""))
    op.execute(_PUBLIC.format(false="0" if is_sqlite else "false"))
    joined = "group_concat(ordered.tag, char(10))" if is_sqlite else "string_agg(ordered.tag, chr(10))"
    op.execute(_TAGS.format(joined=joined, bytewise="" if is_sqlite else 'COLLATE "C"'))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("listings", "tags")
    op.drop_column("listings", "is_private")
