"""Lists know what an adapter is stored as, whether it is signed, and every value of a metric, reported ones too."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_FORMAT = (
    "UPDATE listings SET format = CASE WHEN method = 'wegeft' THEN 'wegeft' WHEN method IN ('lora', 'rslora') THEN 'lora' ELSE 'peft' END"
)
_SIGNED = (
    "UPDATE listings SET is_signed = {true} WHERE version_id IN (SELECT version_id FROM signatures WHERE kind IN ('ed25519', 'ecdsa-p256'))"
)
_REPORTED = (
    "INSERT INTO listing_metrics (version_id, name, value) SELECT e.version_id, e.metric, e.value FROM evaluations e"
    " JOIN listings l ON l.version_id = e.version_id WHERE true ON CONFLICT DO NOTHING"
)
_ONE_EACH = (
    "DELETE FROM listing_metrics WHERE EXISTS (SELECT 1 FROM listing_metrics AS other WHERE other.version_id = listing_metrics.version_id"
    " AND other.name = listing_metrics.name AND other.value < listing_metrics.value)"
)


def upgrade() -> None:
    """Add the columns, their indexes and what they say of adapters that are there."""
    op.add_column("listings", sa.Column("format", sa.String(16), nullable=False, server_default=""))
    op.add_column("listings", sa.Column("is_signed", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute(_FORMAT)
    op.execute(_SIGNED.format(true="1" if op.get_bind().dialect.name == "sqlite" else "true"))
    for name in ("format", "is_signed"):
        for order in ("version_id", "key"):
            op.create_index(f"ix_listings_{name}_{order}", "listings", [name, order])
    _key_metrics_by("version_id", "name", "value")
    op.drop_index("ix_listing_metrics_name_value", "listing_metrics")
    op.create_index("ix_listing_metrics_name_value_version_id", "listing_metrics", ["name", "value", "version_id"])
    op.execute(_REPORTED)


def _key_metrics_by(*columns: str) -> None:
    with op.batch_alter_table("listing_metrics") as batch:
        batch.drop_constraint("pk_listing_metrics", type_="primary")
        batch.create_primary_key("pk_listing_metrics", list(columns))


def downgrade() -> None:
    """Drop them; of several values of a metric, the smallest stays."""
    op.execute(_ONE_EACH)
    op.drop_index("ix_listing_metrics_name_value_version_id", "listing_metrics")
    op.create_index("ix_listing_metrics_name_value", "listing_metrics", ["name", "value"])
    _key_metrics_by("version_id", "name")
    for name in ("format", "is_signed"):
        for order in ("version_id", "key"):
            op.drop_index(f"ix_listings_{name}_{order}", "listings")
        op.drop_column("listings", name)
