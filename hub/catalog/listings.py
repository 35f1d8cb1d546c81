"""How lists learn of a version: in the transaction that publishes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from hub.catalog.provenance_tables import EVALUATIONS
from hub.catalog.tables import LISTING_METRICS, LISTING_TAGS, LISTINGS, MAX_BASE_NAME, VERSIONS, joined_tags, key_of
from hub.catalog.words import stored_words
from hub.publication import Publication
from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.base_model_name import unpinned_name
from wegeft.contracts.native_formats import native_format


def list_newest(connection: Connection, adapter: Row[Any], version_id: int, publication: Publication) -> None:
    """Let lists show this version, in the place of the one before, to those who may see the adapter, whose row the caller holds."""
    unlist(connection, adapter.id)
    key, described = key_of(publication.adapter), publication.description
    row = {
        "version_id": version_id,
        "adapter_id": adapter.id,
        "key": key,
        "namespace": publication.adapter.namespace.lower(),
        "base_name": unpinned_name(publication.base_model)[:MAX_BASE_NAME],
        "base_model": publication.base_model,
        "method": publication.method,
        "rank": publication.rank,
        "size": publication.size,
        "task": described.task,
        "licence": described.licence,
        "format": native_format(publication.method),
        "is_signed": False,
        "is_private": adapter.is_private,
        "tags": joined_tags(described.tags),
        "words": stored_words(_texts(publication)),
    }
    connection.execute(insert(LISTINGS).values(row))
    tags = [{"tag": tag, "version_id": version_id, "key": key} for tag in described.tags]
    metrics = [{"version_id": version_id, "name": name, "value": value} for name, value in publication.metrics.items()]
    for table, rows in ((LISTING_TAGS, tags), (LISTING_METRICS, metrics)):
        if rows:
            connection.execute(insert(table), rows)


def list_privacy(connection: Connection, adapter: AdapterName, *, is_private: bool) -> None:
    """Let lists know who may see the adapter from now on; the caller has changed the adapter's row in this transaction."""
    connection.execute(update(LISTINGS).where(LISTINGS.c.key == key_of(adapter)).values(is_private=is_private))


def list_values(connection: Connection, version_id: int, metric: str) -> None:
    """Let lists know every value of a metric, as its job has measured it and as it was reported; only of versions that they show."""
    listed = select(VERSIONS.c.metrics).join(LISTINGS, LISTINGS.c.version_id == VERSIONS.c.id).where(VERSIONS.c.id == version_id)
    measured = connection.execute(listed).scalar_one_or_none()
    if measured is None:
        return
    reported = select(EVALUATIONS.c.value).where(EVALUATIONS.c.version_id == version_id, EVALUATIONS.c.metric == metric)
    values = {*connection.execute(reported).scalars(), *([measured[metric]] if metric in measured else [])}
    connection.execute(delete(LISTING_METRICS).where(LISTING_METRICS.c.version_id == version_id, LISTING_METRICS.c.name == metric))
    connection.execute(insert(LISTING_METRICS), [{"version_id": version_id, "name": metric, "value": value} for value in values])


def unlist(connection: Connection, adapter_id: int) -> None:
    """Let lists show the adapter no more; whoever deletes an adapter calls this first."""
    before = connection.execute(select(LISTINGS.c.version_id).where(LISTINGS.c.adapter_id == adapter_id)).scalar_one_or_none()
    if before is not None:
        for table in (LISTING_TAGS, LISTING_METRICS, LISTINGS):
            connection.execute(delete(table).where(table.c.version_id == before))


def _texts(publication: Publication) -> Iterator[str]:
    described = publication.description
    yield from (publication.adapter.namespace, publication.adapter.name, publication.base_model, publication.method)
    yield from (described.task, described.licence, *described.tags, described.text)
