"""Words that no listing has any more are forgotten: else whoever publishes and deletes made-up words makes their beginnings slow for all.

Only PostgreSQL keeps the words that there are; triggers note those that listings have had. Whoever changes the words of a listing holds a
lock with all others who do until the commit, and whoever forgets words holds it alone: so nobody forgets a word that a listing has once
another transaction commits, and none that is left is missed.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ARRAY, ColumnElement, Connection, Engine, Integer, String, cast, column, delete, func, literal, select, table
from sqlalchemy.dialects.postgresql import TSQUERY

from hub.catalog.search_terms import TERMS
from hub.catalog.tables import LISTINGS
from infra.database import reading, writing

_LOCK = 7_318_349_394_477_057
"""As the triggers have it."""
_KNOWN = table("listing_words_known", column("word", String))
_LEFT = table("listing_words_left", column("word", String))


def forget_words(engine: Engine, limit: int) -> bool:
    """Look at up to ``limit`` words that listings have had, and forget those that none has; return False where there may be others.

    While somebody publishes or deletes, that is left to a later call.
    """
    if engine.dialect.name == "sqlite":
        return True
    with reading(engine) as connection:
        if connection.execute(select(_LEFT.c.word).limit(1)).first() is None:
            return True
    with writing(engine) as connection:
        found = _find_listings(connection, limit)
    with writing(engine) as connection:
        if not connection.execute(select(func.pg_try_advisory_xact_lock(_LOCK))).scalar_one():
            return False
        _keep_used(connection, {word: version_id for word, version_id in found.items() if version_id is not None})
        _forget_unused(connection, [word for word, version_id in found.items() if version_id is None])
    return len(found) < limit


def _find_listings(connection: Connection, limit: int) -> dict[str, int | None]:
    """Return some words that listings have had, with a listing that has each now: it is looked for while nobody waits."""
    _ask_index(connection)
    asked = select(_LEFT.c.word).limit(limit).subquery()
    listing = select(LISTINGS.c.version_id).where(_has(asked.c.word)).limit(1).scalar_subquery()
    return {row.word: row.version_id for row in connection.execute(select(asked.c.word, listing.label("version_id")))}


def _keep_used(connection: Connection, listings: dict[str, int]) -> None:
    """Look no more at words that these listings have still."""
    arrays = (
        cast(literal(list(listings), ARRAY(String)), ARRAY(String)),
        cast(literal(list(listings.values()), ARRAY(Integer)), ARRAY(Integer)),
    )
    seen = func.unnest(*arrays).table_valued(column("word", String), column("version_id", Integer), name="seen").render_derived()
    used = select(seen.c.word).join(LISTINGS, LISTINGS.c.version_id == seen.c.version_id).where(_has(seen.c.word))
    connection.execute(delete(_LEFT).where(_LEFT.c.word.in_(used)))


def _forget_unused(connection: Connection, words: Sequence[str]) -> None:
    _ask_index(connection)
    asked = select(_LEFT.c.word).where(_LEFT.c.word.in_(words)).subquery()
    listing = select(LISTINGS.c.version_id).where(_has(asked.c.word))
    unused = connection.execute(select(asked.c.word).where(~listing.exists())).scalars().all()
    for words_kept in (_KNOWN, _LEFT):
        connection.execute(delete(words_kept).where(words_kept.c.word.in_(unused)))


def _has(word: ColumnElement[str]) -> ColumnElement[bool]:
    return TERMS.op("@@", is_comparison=True)(cast(word, TSQUERY))


def _ask_index(connection: Connection) -> None:
    """Let the rest of the transaction look listings up by their terms: of words that none has, every other way reads all listings."""
    for way in ("seqscan", "indexscan", "indexonlyscan"):
        connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
