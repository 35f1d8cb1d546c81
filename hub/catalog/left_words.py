"""Words that no listing has any more are forgotten: else whoever publishes and deletes made-up ones makes their beginnings slow for all.

Only PostgreSQL keeps the words that there are by themselves. A word is deleted first, so that whoever begins to publish it now waits, and
knows it anew; then those are waited for who were publishing before that, and may have found it known; then it is asked again whether a
listing has it. Where that takes long, or one of them waits for this in turn, all stay: publishing goes first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, delete, func, insert, select, text

from hub.catalog.search_terms import KNOWN, any_of, have_all
from hub.catalog.tables import LISTINGS
from infra.database import reading, writing

_PUBLISHERS_SECONDS = 0.2
"""That those are waited for who were publishing; a publication takes a tenth of it."""
_LOOK_SECONDS = 0.005
_LISTINGS = 50
"""That are looked at together for the words that they have."""
_SETTINGS = (
    # Of words that none has, every other way than the index reads all listings.
    *(f"SET LOCAL enable_{way} = off" for way in ("seqscan", "indexscan", "indexonlyscan")),
    "SET LOCAL lock_timeout = '200ms'",
    "SET LOCAL statement_timeout = '2s'",
)
_SOME = "SET LOCAL gin_fuzzy_search_limit = 2000"
"""Of a word that very many have, some are enough to see that one has it."""
_WRITERS = text(
    "SELECT coalesce(array_agg(virtualtransaction) FILTER (WHERE relation = 'listings'::regclass AND granted"
    " AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
    " AND pid IS DISTINCT FROM pg_backend_pid()), '{}') AS writers,"
    " coalesce(bool_or(transactionid = pg_current_xact_id()::xid AND NOT granted), false) AS is_waited_for"
    " FROM pg_locks WHERE locktype = 'transactionid' OR database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def forget_words(engine: Engine, after: str, limit: int) -> str:
    """Look at up to ``limit`` words behind ``after``, in their order, and forget those that no listing has.

    Returns the word to go on behind, empty at the end. Holds nobody up but who publishes one of these words, for a moment.
    """
    if engine.dialect.name == "sqlite":
        return ""
    with reading(engine) as connection:
        words = connection.execute(select(KNOWN.c.word).where(KNOWN.c.word > after).order_by(KNOWN.c.word).limit(limit)).scalars().all()
    with _asking_index(engine) as connection:
        connection.exec_driver_sql(_SOME)
        left = _without_listing(connection, words)
    if left:
        with _asking_index(engine) as connection:
            _forget(connection, left)
    return words[-1] if len(words) == limit else ""


@contextmanager
def _asking_index(engine: Engine) -> Iterator[Connection]:
    with writing(engine) as connection:
        for setting in _SETTINGS:
            connection.exec_driver_sql(setting)
        yield connection


def _without_listing(connection: Connection, words: Sequence[str]) -> list[str]:
    """Return those of the words that no listing has, as far as has been committed."""
    left = list(words)
    while left:
        query = select(func.tsvector_to_array(LISTINGS.c.words)).where(have_all([any_of(left)])).limit(_LISTINGS)
        found = connection.execute(query).scalars().all()
        if not found:
            break
        had = {word for each in found for word in each}
        left = [word for word in left if word not in had]
    return left


def _forget(connection: Connection, words: Sequence[str]) -> None:
    ours = select(KNOWN.c.word).where(KNOWN.c.word.in_(words)).order_by(KNOWN.c.word).with_for_update(skip_locked=True)
    held = connection.execute(ours).scalars().all()
    connection.execute(delete(KNOWN).where(KNOWN.c.word.in_(held)))
    gone = set(_without_listing(connection, held)) if _have_published(connection) else set()
    if kept := [{"word": word} for word in held if word not in gone]:
        connection.execute(insert(KNOWN), kept)


def _have_published(connection: Connection) -> bool:
    """Whether all who were writing listings when this was called have ended, soon; those who came after that are not waited for."""
    end = time.monotonic() + _PUBLISHERS_SECONDS
    row = connection.execute(_WRITERS).one()
    writers = set(row.writers)
    while writers and not row.is_waited_for and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        row = connection.execute(_WRITERS).one()
        writers &= set(row.writers)
    return not writers
