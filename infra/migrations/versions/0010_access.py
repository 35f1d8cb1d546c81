"""Access: private adapters, owners of namespaces, scopes, quotas and the audit log; what there is stays as open as it was."""

import json

import sqlalchemy as sa
from alembic import op

from infra.database import UtcTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_AT_ONCE = 1000


def upgrade() -> None:
    """Add the tables and the columns."""
    op.add_column("adapters", sa.Column("is_private", sa.Boolean(), nullable=False, server_default=sa.false()))
    _create_namespaces()
    _create_audit()
    for column in (sa.Column("scopes", sa.Text()), sa.Column("made_by", sa.String(12)), sa.Column("last_used_at", UtcTime())):
        op.add_column("tokens", column)
    op.add_column("jobs", sa.Column("adapter_key", sa.String(193), nullable=True))
    op.add_column("jobs", sa.Column("namespace_key", sa.String(96), nullable=True))
    _name_adapters(op.get_bind())


def _create_namespaces() -> None:
    op.create_table(
        "namespaces",
        sa.Column("key", sa.String(96), nullable=False),
        sa.Column("name", sa.String(96), nullable=False),
        sa.Column("skeleton", sa.String(96), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("is_private_by_default", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_namespaces"),
        sa.UniqueConstraint("skeleton", name="uq_namespaces_skeleton"),
    )
    op.create_table(
        "members",
        sa.Column("namespace", sa.String(96), nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("added_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "account", name="pk_members"),
        sa.ForeignKeyConstraint(["namespace"], ["namespaces.key"], name="fk_members_namespace"),
    )
    op.create_index("ix_members_account", "members", ["account"])


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit"),
    )
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
    op.bulk_insert(head, [{"id": 1, "sequence": 0, "hash": "0" * 64}])
    op.create_table(
        "quotas",
        sa.Column("namespace", sa.String(96), nullable=False),
        sa.Column("max_bytes", sa.BigInteger(), nullable=True),
        sa.Column("max_adapters", sa.Integer(), nullable=True),
        sa.Column("max_versions", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("namespace", name="pk_quotas"),
    )


def _name_adapters(connection: sa.Connection) -> None:
    """Write beside each job which adapter it makes, as its specification says."""
    jobs = sa.table("jobs", sa.column("id"), sa.column("spec"), sa.column("name"), sa.column("adapter_key"), sa.column("namespace_key"))
    last = ""
    while True:
        query = sa.select(jobs.c.id, jobs.c.spec, jobs.c.name).where(jobs.c.id > last).order_by(jobs.c.id).limit(_AT_ONCE)
        rows = connection.execute(query).all()
        if not rows:
            return
        for job_id, spec, name in rows:
            key = str((json.loads(spec).get("output") or {}).get("adapter") or f"local/{name}").lower()
            named = {"adapter_key": key, "namespace_key": key.partition("/")[0]}
            connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(named))
        last = rows[-1].id


def downgrade() -> None:
    """Drop them."""
    op.drop_column("jobs", "namespace_key")
    op.drop_column("jobs", "adapter_key")
    for name in ("last_used_at", "made_by", "scopes"):
        op.drop_column("tokens", name)
    for name in ("quotas", "audit_head", "audit", "members"):
        op.drop_table(name)
    op.drop_table("namespaces")
    op.drop_column("adapters", "is_private")
