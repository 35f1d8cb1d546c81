"""Cards that were edited, one an adapter."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, select

from hub.catalog.provenance_tables import CARDS
from hub.catalog.tables import ADAPTERS, key_of, upsert
from wegeft.contracts.adapter import AdapterName


def lock_adapter_id(connection: Connection, adapter: AdapterName) -> int:
    """Return the row of an adapter that exists, held until the transaction ends, so that two edits do not pass each other."""
    found: int = connection.execute(select(ADAPTERS.c.id).where(ADAPTERS.c.key == key_of(adapter)).with_for_update()).scalar_one()
    return found


def find_card(connection: Connection, adapter: AdapterName) -> Row[Any] | None:
    """Return an adapter's edited card: markdown, digest, license, updated_at; None where it has none."""
    query = select(CARDS).join(ADAPTERS, ADAPTERS.c.id == CARDS.c.adapter_id).where(ADAPTERS.c.key == key_of(adapter))
    return connection.execute(query).one_or_none()


def put_card(connection: Connection, adapter_id: int, card: dict[str, Any], by: tuple[str, datetime]) -> None:
    """Keep an edited card: markdown, digest and license; ``by``: who has written it, and when."""
    row = {"adapter_id": adapter_id, **card, "updated_by": by[0], "updated_at": by[1]}
    connection.execute(upsert(connection, CARDS).values(row).on_conflict_do_update(index_elements=[CARDS.c.adapter_id], set_=row))


def drop_card(connection: Connection, adapter_id: int) -> None:
    """Forget an edited card, so that the latest version's own is shown again."""
    connection.execute(delete(CARDS).where(CARDS.c.adapter_id == adapter_id))
