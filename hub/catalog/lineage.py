"""Which version came of which: parents are published before their children, so a family tree has no circles."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, or_, select

from hub.catalog.holds import version_of
from hub.catalog.provenance_tables import LINEAGE
from hub.catalog.tables import ADAPTERS, HOLDS, VERSIONS, upsert
from hub.catalog.visibility import seen_by
from infra.principals import Principal
from wegeft.contracts.provenance import MAX_GENERATIONS, MAX_RELATIVES, Relation, Relative

_ROUND = re.compile(r"(?P<job>round:.+:)(?P<number>[0-9]{1,9})\Z")
Direction = Literal["ancestors", "descendants"]


def record_parents(connection: Connection, version_id: int, source: str, started_from: Iterable[str], edited: str | None) -> None:
    """Note a new version's parents: the round before it, those whose weights training began with, and the source that it is an edit of."""
    before = _ROUND.match(source)
    if before:
        earlier = f"{before['job']}{int(before['number']) - 1}"
        _add(connection, version_id, _of_sources(connection, [earlier]), "next_round")
    holders = select(HOLDS.c.holder).where(HOLDS.c.digest.in_(set(started_from)), HOLDS.c.holder.startswith(version_of("")))
    sources = [holder.removeprefix(version_of("")) for holder in connection.execute(holders).scalars()]
    _add(connection, version_id, _of_sources(connection, sources), "started_from")
    _add(connection, version_id, _of_sources(connection, [edited] if edited else []), "edited")


def _of_sources(connection: Connection, sources: list[str]) -> list[int]:
    return list(connection.execute(select(VERSIONS.c.id).where(VERSIONS.c.source.in_(sources))).scalars())


def _add(connection: Connection, version_id: int, parents: list[int], relation: Relation) -> None:
    rows = [{"version_id": version_id, "parent_id": parent, "relation": relation} for parent in parents if parent < version_id]
    if rows:
        connection.execute(upsert(connection, LINEAGE).on_conflict_do_nothing(), rows)


def find_relatives(
    connection: Connection, version_id: int, direction: Direction, reader: Principal | None = None
) -> tuple[tuple[Relative, ...], bool]:
    """Return a version's family in one direction as trees, and whether more of it exists than is shown.

    Of other adapters only those that ``reader`` may see; None sees the public ones.

    One query a generation; at most :data:`MAX_GENERATIONS` of them, and :data:`MAX_RELATIVES` versions.
    """
    links: dict[int, list[Row[Any]]] = {}
    level, is_cut = [version_id], False
    seen = {version_id}
    own = select(VERSIONS.c.adapter_id).where(VERSIONS.c.id == version_id).scalar_subquery()
    is_shown = or_(ADAPTERS.c.id == own, seen_by(reader))
    for _ in range(MAX_GENERATIONS):
        found = _next_of_kin(connection, level, direction, is_shown, MAX_RELATIVES - len(seen) + 2)
        level = []
        for row in found:
            if row.id not in seen and len(seen) > MAX_RELATIVES:
                is_cut = True
                continue
            links.setdefault(row.near, []).append(row)
            if row.id not in seen:
                seen.add(row.id)
                level.append(row.id)
        if not level:
            return _trees(links, version_id), is_cut
    is_cut = is_cut or bool(_next_of_kin(connection, level, direction, is_shown, 1))
    return _trees(links, version_id), is_cut


def _next_of_kin(
    connection: Connection, level: list[int], direction: Direction, is_shown: ColumnElement[bool], limit: int
) -> list[Row[Any]]:
    near, far = (LINEAGE.c.version_id, LINEAGE.c.parent_id) if direction == "ancestors" else (LINEAGE.c.parent_id, LINEAGE.c.version_id)
    shown = (VERSIONS.c.id, VERSIONS.c.number, VERSIONS.c.source, VERSIONS.c.manifest_digest, ADAPTERS.c.namespace, ADAPTERS.c.name)
    query = select(near.label("near"), LINEAGE.c.relation, *shown).join(VERSIONS, VERSIONS.c.id == far)
    query = query.join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id).where(near.in_(level), is_shown)
    return list(connection.execute(query.order_by(VERSIONS.c.id).limit(max(limit, 1))))


def _trees(links: dict[int, list[Row[Any]]], root: int) -> tuple[Relative, ...]:
    """Build the trees from their leaves up; a version that several follow is told in full once, so that the answer does not explode."""
    order: list[int] = []
    told: set[int] = set()
    stack = [root]
    owners: dict[int, int] = {}
    while stack:
        at = stack.pop()
        order.append(at)
        for row in links.get(at, []):
            if row.id not in told and row.id != root:
                told.add(row.id)
                owners[row.id] = at
                stack.append(row.id)
    kin: dict[int, tuple[Relative, ...]] = {}
    for at in reversed(order):
        kin[at] = tuple(_relative(row, kin.get(row.id, ()) if owners.get(row.id) == at else ()) for row in links.get(at, []))
    return kin[root]


def _relative(row: Row[Any], kin: tuple[Relative, ...]) -> Relative:
    ref = f"{row.namespace}/{row.name}@{row.number}"
    return Relative(ref=ref, manifest_digest=row.manifest_digest, source=row.source, relation=row.relation, kin=kin)
