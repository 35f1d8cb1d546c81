"""What is known about versions beside their files: signatures, evaluations, lineage, and adapters' cards."""

import json
import math
import re

import sqlalchemy as sa
from alembic import op

from infra.database import UtcTime

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; what jobs have measured becomes evaluations, and rounds of one federation become each other's parents."""
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("algorithm", sa.String(16), nullable=False),
        sa.Column("pem", sa.String(1000), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("retired_at", UtcTime(), nullable=True),
        sa.Column("endorsed_by", sa.String(64), nullable=True),
        sa.Column("endorsement", sa.String(400), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_signing_keys"),
    )
    op.create_table(
        "signatures",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("version_id", "kind", name="pk_signatures"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_signatures_version_id"),
        sa.ForeignKeyConstraint(["key_id"], ["signing_keys.id"], name="fk_signatures_key_id"),
    )
    op.create_table(
        "cards",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("markdown", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("license", sa.String(500), nullable=True),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.Column("updated_by", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", name="pk_cards"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_cards_adapter_id"),
    )
    _add_evaluations()
    _add_lineage()


def _add_evaluations() -> None:
    evaluations = op.create_table(
        "evaluations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("metric", sa.String(100), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("dataset_digest", sa.String(71), nullable=False),
        sa.Column("dataset_name", sa.String(200), nullable=False),
        sa.Column("is_reported", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_evaluations_version_id"),
        sa.UniqueConstraint(
            "version_id",
            "metric",
            "dataset_digest",
            "dataset_name",
            "is_reported",
            name="uq_evaluations_once",
        ),
    )
    op.create_index("ix_evaluations_metric_value_version_id", "evaluations", ["metric", "value", "version_id"])
    versions = sa.table(
        "versions",
        sa.column("id", sa.Integer()),
        sa.column("metrics", sa.JSON()),
        sa.column("created_at", UtcTime()),
        sa.column("created_by", sa.String()),
    )
    for row in op.get_bind().execute(sa.select(versions)).all():
        metrics = json.loads(row.metrics) if isinstance(row.metrics, str) else row.metrics
        found = [
            {"version_id": row.id, "metric": name, "value": float(value), "created_at": row.created_at, "created_by": row.created_by}
            for name, value in metrics.items()
            if math.isfinite(value) and name.removeprefix("mean_") in _MEASURES
        ]
        if found:
            op.bulk_insert(evaluations, [{**one, "dataset_digest": "", "dataset_name": "", "is_reported": 0} for one in found])


_MEASURES = frozenset(
    [
        "eval_loss",
        "exact_match",
        "perplexity",
        "token_accuracy",
        "accuracy",
        "f1",
        "macro_f1",
        "matthews_correlation",
        "pearson",
        "spearman",
    ]
)


def _add_lineage() -> None:
    lineage = op.create_table(
        "lineage",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=False),
        sa.Column("relation", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("version_id", "parent_id", name="pk_lineage"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_lineage_version_id"),
        sa.ForeignKeyConstraint(["parent_id"], ["versions.id"], name="fk_lineage_parent_id"),
        sa.CheckConstraint("parent_id < version_id", name=op.f("ck_lineage_parent_is_older")),
    )
    op.create_index("ix_lineage_parent_id", "lineage", ["parent_id"])
    found = op.get_bind().execute(sa.text("SELECT source, id FROM versions WHERE source LIKE 'round:%'"))
    sources: dict[str, int] = {row.source: row.id for row in found}
    rows = []
    for source, version_id in sources.items():
        named = re.match(r"(round:.+:)([0-9]+)\Z", source)
        parent_id = sources.get(f"{named[1]}{int(named[2]) - 1}") if named else None
        if parent_id is not None and parent_id < version_id:
            rows.append({"version_id": version_id, "parent_id": parent_id, "relation": "next_round"})
    if rows:
        op.bulk_insert(lineage, rows)


def downgrade() -> None:
    """Drop them."""
    for table in ("lineage", "evaluations", "cards", "signatures", "signing_keys"):
        op.drop_table(table)
