"""Holds: which bytes are stored, who needs them and until when; what there is already is held as it is named."""

import json
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

from infra.database import UtcTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both tables, and rows for what versions and jobs name."""
    blobs = op.create_table(
        "blobs",
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("is_leaving", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_blobs"),
    )
    holds = op.create_table(
        "holds",
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("holder", sa.String(220), nullable=False),
        sa.Column("until", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("digest", "holder", name="pk_holds"),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name="fk_holds_digest"),
    )
    op.create_index("ix_holds_holder", "holds", ["holder"])
    sizes: dict[str, int | None] = {}
    held = set()
    for holder, digest, size in _names(op.get_bind()):
        sizes[digest] = size or sizes.get(digest)
        held.add((digest, holder))
    op.bulk_insert(blobs, [{"digest": digest, "size": size, "is_leaving": False} for digest, size in sizes.items()])
    op.bulk_insert(holds, [{"digest": digest, "holder": holder, "until": None} for digest, holder in sorted(held)])


def _names(connection: sa.Connection) -> Iterator[tuple[str, str, int | None]]:
    """Yield holder, digest and, where it is known, the size of everything that a row names."""
    for source, manifest in connection.execute(sa.text("SELECT source, manifest FROM versions")):
        for layer in json.loads(manifest)["layers"]:
            yield f"version:{source}", layer["digest"], layer["size"]
    for job_id, digest in connection.execute(sa.text("SELECT job_id, digest FROM job_blobs")):
        yield f"delivery:{job_id}", digest, None
    for job_id, text, checkpoint in connection.execute(sa.text("SELECT id, spec, resume_from FROM jobs")):
        spec = json.loads(text)
        for dataset in (*spec.get("datasets", ()), *spec.get("test_datasets", ())):
            if dataset["path"].startswith("sha256:"):
                yield f"job:{job_id}", dataset["path"], None
        # PostgreSQL gives JSON as what it means, SQLite as text.
        files = (json.loads(checkpoint) if isinstance(checkpoint, str) else checkpoint or {}).get("files", ())
        for entry in files:
            yield f"checkpoint:{job_id}", entry["digest"], entry["size"]


def downgrade() -> None:
    """Drop them."""
    op.drop_table("holds")
    op.drop_table("blobs")
