"""The catalog's benchmark inserts what the catalog itself would find, on both databases."""

from __future__ import annotations

from itertools import islice
from urllib.parse import parse_qs

from sqlalchemy import text

from bench.catalog_scale import TAGS, fill, fill_statements, queries
from hub import catalog
from hub.adapter_query import AdapterQuery
from infra.database import reading
from tests.databases import open_database

ROWS = 300
_LISTS = ("tag", "metric")


def test_what_is_inserted_is_listed_and_found(database_url: str) -> None:
    engine = open_database(database_url)
    fill(engine, fill_statements(ROWS, engine.dialect.name))
    with reading(engine) as connection:
        assert catalog.count_facets(connection, catalog.AdapterFilter()).counted == ROWS
        tagged = connection.execute(text("SELECT count(*) FROM listing_tags WHERE tag = 'tag-0'")).scalar_one()
        assert 0 < tagged < ROWS
        found = catalog.count_facets(connection, catalog.AdapterFilter(tags=("tag-0",)))
        assert found.counted == tagged
        assert len(found.facets["tag"]) <= TAGS
        for kind, addresses in queries().items():
            listed = 0
            for address in islice(addresses, 40):
                asked = {name: value if name in _LISTS else value[0] for name, value in parse_qs(address).items()}
                query = AdapterQuery.model_validate(asked)
                listed += len(catalog.list_adapters(connection, 50, wanted=query.wanted, order=query.order).adapters)
            assert listed > 0, kind
    engine.dispose()
