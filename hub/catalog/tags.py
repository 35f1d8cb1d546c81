"""Names that stay: a tag means one version for ever, also after it was deleted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Connection, ForeignKeyConstraint, Integer, Row, String, Table, Text, insert, select, update

from hub.catalog.tables import ADAPTERS, ALIASES, VERSIONS, key_of
from infra import audit
from infra.database import METADATA, UtcTime
from wegeft.contracts.adapter import LATEST, AdapterName
from wegeft.contracts.base_model_name import is_commit
from wegeft.contracts.errors import AdapterNotFound, AliasNotFound, Conflict, InvalidReference, InvalidRequest

TAGS = Table(
    "tags",
    METADATA,
    Column("adapter_id", Integer, primary_key=True),
    Column("tag", String(64), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("deleted_at", UtcTime, nullable=True),  # the row stays, so that the name never means another version
    ForeignKeyConstraint(["adapter_id", "number"], ["versions.adapter_id", "versions.number"]),
)

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")
_MAX_MESSAGE = 10_000


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A tag about to be made."""

    name: str
    number: int
    created_by: str
    message: str = ""

    def __post_init__(self) -> None:
        check_tag(self.name)
        if len(self.message) > _MAX_MESSAGE or "\0" in self.message:
            raise InvalidRequest("not a message", path="message", hint=f"at most {_MAX_MESSAGE} characters of text")


def check_tag(text: str) -> str:
    """Return ``text`` if it can be a tag: neither a number, nor a commit, nor a name that moves by itself."""
    if not _TAG.match(text) or text.isdecimal() or is_commit(text) or text in ("main", LATEST):
        raise InvalidReference(
            "not a valid tag", path="tag", value=text, hint="1 to 64 of A-Z a-z 0-9 . _ + -, as in 'v1.0'; not a number, 'main' or 'latest'"
        )
    return text


def create_tag(connection: Connection, adapter: AdapterName, tag: Tag, now: datetime) -> None:
    """Name a version for ever; raise :class:`Conflict` where the name is taken, by an alias or by another version before it was deleted."""
    # Locked, so that two who make one tag wait for each other.
    query = select(ADAPTERS.c.id).where(ADAPTERS.c.key == key_of(adapter)).with_for_update()
    adapter_id = connection.execute(query).scalar_one_or_none()
    if adapter_id is None:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    found = _find(connection, adapter_id, tag.name)
    taken = select(ALIASES.c.alias).where(ALIASES.c.adapter_id == adapter_id, ALIASES.c.alias == tag.name)
    if connection.execute(taken).first() is not None:
        raise Conflict("an alias has this name", path="tag", value=tag.name, hint="use another one")
    if found is not None and (found.deleted_at is None or found.number != tag.number):
        raise Conflict("the tag means a version already, and never another", path="tag", value=tag.name, hint=f"version {found.number}")
    row = {"number": tag.number, "message": tag.message, "created_by": tag.created_by, "created_at": now, "deleted_at": None}
    if found is None:
        connection.execute(insert(TAGS).values(adapter_id=adapter_id, tag=tag.name, **row))
    else:
        connection.execute(update(TAGS).where(TAGS.c.adapter_id == adapter_id, TAGS.c.tag == tag.name).values(row))
    audit.note(connection, "tag.create", f"{adapter}@{tag.name}", now, version=tag.number)


def delete_tag(connection: Connection, adapter: AdapterName, tag: str, now: datetime) -> None:
    """Let a tag mean nothing; raise :class:`AliasNotFound` where it does not mean anything."""
    adapter_id = connection.execute(select(ADAPTERS.c.id).where(ADAPTERS.c.key == key_of(adapter))).scalar_one_or_none()
    gone = update(TAGS).where(TAGS.c.adapter_id == adapter_id, TAGS.c.tag == tag, TAGS.c.deleted_at.is_(None))
    if not connection.execute(gone.values(deleted_at=now)).rowcount:
        raise AliasNotFound("the adapter has no such tag", path=str(adapter), value=tag)
    audit.note(connection, "tag.delete", f"{adapter}@{tag}", now)


def find_tagged(connection: Connection, adapter: AdapterName, tag: str) -> int | None:
    """Return the number of the version that a tag means, or None."""
    query = select(TAGS.c.number).join(ADAPTERS, ADAPTERS.c.id == TAGS.c.adapter_id)
    meant = query.where(ADAPTERS.c.key == key_of(adapter), TAGS.c.tag == tag, TAGS.c.deleted_at.is_(None))
    number: int | None = connection.execute(meant).scalar_one_or_none()
    return number


def list_tags(connection: Connection, adapter: AdapterName) -> Mapping[str, str]:
    """Return the manifest digest of the version behind each tag, by name."""
    is_tagged = (VERSIONS.c.adapter_id == TAGS.c.adapter_id) & (VERSIONS.c.number == TAGS.c.number)
    query = select(TAGS.c.tag, VERSIONS.c.manifest_digest).join(VERSIONS, is_tagged).join(ADAPTERS, ADAPTERS.c.id == TAGS.c.adapter_id)
    rows = connection.execute(query.where(ADAPTERS.c.key == key_of(adapter), TAGS.c.deleted_at.is_(None)).order_by(TAGS.c.tag))
    return {row.tag: row.manifest_digest for row in rows}


def refuse_tag(connection: Connection, adapter: AdapterName, alias: str) -> None:
    """Raise :class:`Conflict` where a tag has, or had, the name that somebody would give to an alias: the tag would hide it."""
    adapter_id = connection.execute(select(ADAPTERS.c.id).where(ADAPTERS.c.key == key_of(adapter))).scalar_one_or_none()
    if adapter_id is not None and _find(connection, adapter_id, alias) is not None:
        raise Conflict("a tag has this name, or had it", path="alias", value=alias, hint="use another one")


def _find(connection: Connection, adapter_id: int, tag: str) -> Row[Any] | None:
    return connection.execute(select(TAGS).where(TAGS.c.adapter_id == adapter_id, TAGS.c.tag == tag)).one_or_none()
