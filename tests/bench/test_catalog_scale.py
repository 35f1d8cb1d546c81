"""The catalog's benchmark inserts the rows that publishing writes, on both databases, and MLflow's tables of the same adapters."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import Engine, select, text

from bench._catalog_rows import Drawn, base_model_of, files_of, fill, weights_digest
from bench.catalog_scale import queries
from hub import catalog
from hub.adapter_query import AdapterQuery, FilterQuery
from hub.catalog.words import stored_words
from hub.description import Description
from hub.publication import Publication
from infra.database import reading, writing
from tests.databases import open_database
from wegeft.contracts.adapter import AdapterName

ROWS = 300
_SEVERAL = ("tag", "metric")
_RARE = ("full text, none", "never together", "tag, base, text, metric", "metric bounds, tag")
_TABLES = (catalog.ADAPTERS, catalog.VERSIONS, catalog.LISTINGS, catalog.LISTING_TAGS, catalog.LISTING_METRICS, catalog.EVALUATIONS)


@pytest.fixture
def filled(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url)
    fill(engine, ROWS)
    yield engine
    engine.dispose()


def publication_of(one: Drawn) -> Publication:
    described = Description(task=one.task, licence=one.licence, tags=one.tags, text=one.text)
    return Publication(
        adapter=AdapterName(namespace=one.namespace, name=one.name),
        files=files_of(weights_digest(one.number), one.size),
        source=f"job:{one.number}",
        base_model=base_model_of(one),
        method=one.method,
        rank=one.rank,
        created_by="bench",
        metrics=one.metrics,
        description=described,
    )


def rows_of(engine: Engine, number: int) -> dict[str, list[dict[str, Any]]]:
    """Return what the tables say of the adapter of a number, without what the database gives: ids."""
    found: dict[str, list[dict[str, Any]]] = {}
    with engine.connect() as connection:
        version_id = connection.execute(select(catalog.VERSIONS.c.id).where(catalog.VERSIONS.c.source == f"job:{number}")).scalar_one()
        adapter_id = connection.execute(select(catalog.VERSIONS.c.adapter_id).where(catalog.VERSIONS.c.id == version_id)).scalar_one()
        for table in _TABLES:
            meant = {"adapters": "id", "versions": "id"}.get(table.name, "version_id")
            wanted = adapter_id if table.name == "adapters" else version_id
            rows = connection.execute(select(table).where(table.c[meant] == wanted)).mappings()
            kept = [{name: value for name, value in row.items() if name not in ("id", "version_id", "adapter_id")} for row in rows]
            found[table.name] = sorted(kept, key=str)
    return found


def test_a_filled_row_is_a_published_one(filled: Engine) -> None:
    before = {number: rows_of(filled, number) for number in range(1, 41)}
    with writing(filled) as connection:
        for table in reversed(_TABLES):
            connection.execute(table.delete())
    for number in before:
        publication = publication_of(Drawn(number))
        with writing(filled) as connection:
            for entry in publication.files:
                catalog.expect(connection, entry.digest, Drawn(number).published_at)
            catalog.publish(connection, publication, Drawn(number).published_at)
            if Drawn(number).is_signed:
                connection.execute(
                    catalog.LISTINGS.update().where(catalog.LISTINGS.c.key == str(publication.adapter)).values(is_signed=True)
                )
    for number, rows in before.items():
        assert rows == rows_of(filled, number)
        assert all(len(some) > 0 for some in rows.values())


def test_the_words_are_those_that_publishing_stores() -> None:
    from bench._catalog_rows import words_of

    one = Drawn(17)
    texts = (one.namespace, one.name, base_model_of(one), one.method, one.task, one.licence, *one.tags, one.text)
    assert words_of(one) == stored_words(texts)


def test_what_is_inserted_is_listed_and_found(filled: Engine) -> None:
    with reading(filled) as connection:
        tagged = connection.execute(text("SELECT count(*) FROM listing_tags WHERE tag = 'tag-0'")).scalar_one()
        assert 0 < tagged < ROWS
        assert catalog.count_facets(connection, catalog.AdapterFilter(tags=("tag-0",))).counted == tagged
        for kind, addresses in queries().items():
            listed = 0
            for address in islice(addresses, 40):
                asked = {name: value if name in _SEVERAL else value[0] for name, value in parse_qs(urlsplit(address).query).items()}
                if address.startswith("/facets"):
                    listed += catalog.count_facets(connection, FilterQuery.model_validate(asked).wanted).counted
                    continue
                query = AdapterQuery.model_validate(asked)
                listed += len(catalog.list_adapters(connection, 50, wanted=query.wanted, order=query.order).adapters)
            assert listed > 0 or kind in _RARE, kind
