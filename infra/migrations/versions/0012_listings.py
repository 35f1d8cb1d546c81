"""Listings: what lists of adapters show and filter, with a full-text index; what was published before is listed by its rows."""

import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_TABLES = ("listing_metrics", "listing_tags", "listings")
_FULL_TEXT = (
    "CREATE VIRTUAL TABLE listing_words USING fts5(words, content='listings', content_rowid='version_id', detail=none, columnsize=0,"
    " tokenize='ascii', prefix='1 2 3 4 5 6 7 8')",
    "CREATE TRIGGER listings_added AFTER INSERT ON listings BEGIN"
    " INSERT INTO listing_words(rowid, words) VALUES (new.version_id, new.words); END",
    "CREATE TRIGGER listings_removed AFTER DELETE ON listings BEGIN"
    " INSERT INTO listing_words(listing_words, rowid, words) VALUES ('delete', old.version_id, old.words); END",
    "CREATE TRIGGER listings_changed AFTER UPDATE OF version_id, words ON listings BEGIN"
    " INSERT INTO listing_words(listing_words, rowid, words) VALUES ('delete', old.version_id, old.words);"
    " INSERT INTO listing_words(rowid, words) VALUES (new.version_id, new.words); END",
)


def upgrade() -> None:
    """Add the tables and SQLite's full-text index, and list what is there."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    bytewise = sa.String(193) if is_sqlite else sa.String(193, collation="C")
    listings, metrics = _create_tables(bytewise, sa.Text() if is_sqlite else postgresql.TSVECTOR())
    if is_sqlite:
        for statement in _FULL_TEXT:
            op.execute(statement)
    else:
        op.create_index("ix_listings_words", "listings", ["words"], postgresql_using="gin")
    for row, figures in _listed(op.get_bind()):
        op.get_bind().execute(listings.insert().values(row))
        if figures:
            op.get_bind().execute(metrics.insert(), figures)


def _create_tables(bytewise: sa.String, words: sa.types.TypeEngine[Any]) -> tuple[sa.Table, sa.Table]:
    listings = op.create_table(
        "listings",
        sa.Column("version_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("key", bytewise, nullable=False),
        sa.Column("namespace", sa.String(96), nullable=False),
        sa.Column("base_name", sa.String(400), nullable=False),
        sa.Column("base_model", sa.String(4200), nullable=False),
        sa.Column("method", sa.String(40), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("task", sa.String(64), nullable=False),
        sa.Column("licence", sa.String(64), nullable=False),
        sa.Column("words", words, nullable=False),
        sa.PrimaryKeyConstraint("version_id", name="pk_listings"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_listings_adapter_id"),
        sa.UniqueConstraint("adapter_id", name="uq_listings_adapter_id"),
        sa.UniqueConstraint("key", name="uq_listings_key"),
    )
    op.create_index("ix_listings_size_version_id", "listings", ["size", "version_id"])
    for name in ("base_name", "namespace", "method", "rank", "task", "licence"):
        for order in ("version_id", "key"):
            op.create_index(f"ix_listings_{name}_{order}", "listings", [name, order])
    return listings, _create_property_tables(bytewise)


def _create_property_tables(bytewise: sa.String) -> sa.Table:
    """Create what a listing has several of, tags and metrics; return the table of metrics."""
    op.create_table(
        "listing_tags",
        sa.Column("tag", sa.String(64), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("key", bytewise, nullable=False),
        sa.PrimaryKeyConstraint("tag", "version_id", name="pk_listing_tags"),
        sa.ForeignKeyConstraint(["version_id"], ["listings.version_id"], name="fk_listing_tags_version_id"),
    )
    op.create_index("ix_listing_tags_tag_key", "listing_tags", ["tag", "key"])
    op.create_index("ix_listing_tags_version_id", "listing_tags", ["version_id"])
    metrics = op.create_table(
        "listing_metrics",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("value", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("version_id", "name", name="pk_listing_metrics"),
        sa.ForeignKeyConstraint(["version_id"], ["listings.version_id"], name="fk_listing_metrics_version_id"),
    )
    op.create_index("ix_listing_metrics_name_value", "listing_metrics", ["name", "value"])
    return metrics


def _listed(connection: sa.Connection) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield the listing and the metrics of every adapter; what its card says is known from its next version on."""
    query = (
        "SELECT v.id, v.adapter_id, a.key, a.namespace, a.name, v.base_model, v.method, v.rank, v.size, v.metrics FROM adapters a"
        " JOIN versions v ON v.adapter_id = a.id AND v.number = a.latest_number"
    )
    for found in connection.execute(sa.text(query)).all():
        texts = (found.namespace, found.name, found.base_model, found.method)
        row = {name: getattr(found, name) for name in ("adapter_id", "key", "base_model", "method", "rank", "size")}
        row |= {"version_id": found.id, "namespace": found.namespace.lower(), "base_name": found.base_model.partition("@")[0][:400]}
        row |= {"task": "", "licence": "", "words": " ".join(dict.fromkeys(word for text in _words_of(texts) for word in text))}
        figures = json.loads(found.metrics) if isinstance(found.metrics, str) else found.metrics
        yield row, [{"version_id": found.id, "name": name, "value": value} for name, value in figures.items()]


def _words_of(texts: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield the words of each text, as ``hub.catalog.words`` splits them at this revision."""
    for text in texts:
        folded = (letter for letter in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(letter))
        spelled = (letter if letter.isascii() else f"u{ord(letter):05x}" if letter.isalnum() else " " for letter in folded)
        yield [word[:40] for word in re.findall("[a-z0-9]+", "".join(spelled))]


def downgrade() -> None:
    """Drop them."""
    if op.get_bind().dialect.name == "sqlite":
        for name in ("added", "removed", "changed"):
            op.execute(f"DROP TRIGGER listings_{name}")
        op.execute("DROP TABLE listing_words")
    for table in _TABLES:
        op.drop_table(table)
