"""The audit log: every change, appended to a chain of hashes in the transaction that makes the change.

Entries wait until the transaction is about to commit, so that the end of the chain, which one writer holds at a time, is held only for a
moment and after everything else: writers wait for each other and never in a circle. See :mod:`wegeft.contracts.audit` for the chain.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import JsonValue, ValidationError
from sqlalchemy import BigInteger, Column, Connection, Integer, Row, String, Table, Text, insert, select, update

from infra.calling import current_call
from infra.database import METADATA, before_commit
from wegeft.contracts.audit import FIRST_HASH, AuditEntry, AuditHead, AuditPage
from wegeft.contracts.errors import shorten

AUDIT = Table(
    "audit",
    METADATA,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("entry", Text, nullable=False),  # the bytes that the hash is made of
    Column("hash", String(64), nullable=False),
)

AUDIT_HEAD = Table(
    "audit_head",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
)
"""One row, which whoever appends holds until the commit."""

_ONLY = 1


def note(connection: Connection, action: str, subject: str, now: datetime | None = None, **details: JsonValue) -> None:
    """Append a change to the log when the transaction commits; nothing is written where it does not.

    Who made it is told by the request that is being answered, and so is the time where ``now`` is not given. No secret may be in it.
    """
    call = current_call()
    draft = AuditEntry(
        sequence=0,
        at=now or call.at,
        actor=call.actor,
        token_id=call.token_id,
        request_id=call.request_id,
        action=action,
        subject=subject,
        details=details,
        previous=FIRST_HASH,
    )
    before_commit(connection, lambda ending: _append(ending, draft))


def _append(connection: Connection, draft: AuditEntry) -> None:
    head = connection.execute(select(AUDIT_HEAD).where(AUDIT_HEAD.c.id == _ONLY).with_for_update()).one()
    entry = draft.model_copy(update={"sequence": head.sequence + 1, "previous": head.hash}).sealed()
    connection.execute(insert(AUDIT).values(sequence=entry.sequence, entry=entry.content.decode(), hash=entry.hash))
    connection.execute(update(AUDIT_HEAD).where(AUDIT_HEAD.c.id == _ONLY).values(sequence=entry.sequence, hash=entry.hash))


def read_page(connection: Connection, after: int, limit: int) -> AuditPage:
    """Return up to ``limit`` entries behind number ``after``, as they are stored, whether or not their hashes are right."""
    query = select(AUDIT).where(AUDIT.c.sequence > after).order_by(AUDIT.c.sequence).limit(limit)
    entries = tuple(_entry(row) for row in connection.execute(query))
    head = connection.execute(select(AUDIT_HEAD.c.sequence, AUDIT_HEAD.c.hash).where(AUDIT_HEAD.c.id == _ONLY)).one()
    return AuditPage(entries=entries, head=AuditHead(sequence=head.sequence, hash=head.hash))


def _entry(row: Row[Any]) -> AuditEntry:
    # A row that somebody has touched is answered as well as it can be; the reader's check finds it.
    try:
        return AuditEntry.model_validate_json(row.entry).model_copy(update={"hash": row.hash})
    except ValidationError:
        return AuditEntry(
            sequence=row.sequence,
            at=None,
            actor="",
            token_id=None,
            request_id=None,
            action="unreadable",
            subject=shorten(row.entry),
            details={},
            previous="",
            hash=row.hash,
        )
