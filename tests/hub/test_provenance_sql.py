"""What is known of versions, in both databases: its rows, and what becomes of those of before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import get_args

import pytest
from alembic import command
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError

from hub import catalog
from hub.objects import MemoryStore
from hub.signing import Signer
from infra.database import make_engine, migration_config, reading, upgrade, writing
from tests.hub.serving import NOW, Hub, made_hub
from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.provenance import EvaluationReport
from wegeft.contracts.signing_keys import Algorithm, SigningKey

NAME = AdapterName.parse("demo/x")
SIGNER, NEXT = Signer(key=SigningKey(b"\x01" * 32)), Signer(key=SigningKey(b"\x02" * 32))


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    with made_hub(database_url, MemoryStore(), SIGNER) as hub:
        yield hub


def test_rows_of_provenance_are_written_and_read(hub: Hub) -> None:
    """Publishing the same source again adds nothing; keys that come back sign again."""
    for _ in range(2):
        hub.publish("round:7:1", "demo/x", metrics={"accuracy": 0.5})
        hub.publish("round:7:2", "demo/x", weights=b"2", metrics={"accuracy": 0.75})
    with writing(hub.engine) as connection:
        for value in (0.25, 1e-9):
            catalog.report_evaluation(connection, (NAME, 2), EvaluationReport(metric="f1", value=value), "ada", NOW)
        rows = catalog.list_evaluations(connection, NAME, 2)
        assert [(row.metric, row.value, row.is_reported, row.created_at) for row in rows] == [
            ("accuracy", 0.75, False, NOW),
            ("f1", 1e-9, True, NOW),
        ]
        adapter_id = catalog.lock_adapter_id(connection, NAME)
        for text in ("# One", "# Two"):
            card = {"markdown": text, "digest": f"sha256:{1:064x}", "license": None}
            catalog.put_card(connection, adapter_id, card, ("ada", NOW))
        found = catalog.find_card(connection, NAME)
        assert found is not None
        assert found.markdown == "# Two"
        catalog.drop_card(connection, adapter_id)
        assert catalog.find_card(connection, NAME) is None
        [[before], _] = catalog.find_relatives(connection, catalog.find_version_id(connection, NAME, 2), "ancestors")
        assert (before.ref, before.relation) == ("demo/x@1", "next_round")
        assert all(catalog.find_signature(connection, NAME, 2, kind) for kind in get_args(Algorithm))
        assert catalog.find_signature(connection, NAME, 2, "attestation") is None
    for hours, signer in ((1, NEXT), (2, SIGNER)):
        with writing(hub.engine) as connection:
            moment = NOW + timedelta(hours=hours)
            catalog.register_keys(connection, signer.public_keys(moment), moment)
    with reading(hub.engine) as connection:
        keys = catalog.list_keys(connection).keys
    assert [key.retired_at for key in keys] == [None, None, *[NOW + timedelta(hours=2)] * 2]
    assert {key.created_at for key in keys[:2]} == {NOW}


def test_a_circle_cannot_be_written(hub: Hub) -> None:
    """A child is younger than its parent, which the database holds whoever writes."""
    hub.publish("job:1", "demo/x")
    hub.publish("job:2", "demo/x", weights=b"2")
    with reading(hub.engine) as connection:
        one, two = (catalog.find_version_id(connection, NAME, number) for number in (1, 2))
    circle = catalog.LINEAGE.insert().values(version_id=one, parent_id=two, relation="edited")
    with pytest.raises(IntegrityError), writing(hub.engine) as connection:
        connection.execute(circle)


def test_versions_of_before_have_their_evaluations_and_rounds(database_url: str) -> None:
    """What was measured by their jobs, and which round followed which."""
    engine = make_engine(database_url)
    with engine.connect().execution_options(writer=True) as connection, connection.begin():
        command.upgrade(migration_config(connection), "0006")
        moment = "'2026-01-01 00:00:00+00:00'" if connection.dialect.name == "postgresql" else "'2026-01-01 00:00:00'"
        connection.exec_driver_sql(f"INSERT INTO adapters VALUES (1, 'demo/x', 'demo', 'x', 4, 5, {moment}, {moment})")
        metrics = json.dumps({"accuracy": 0.5, "steps": 9.0, "accuracy_before": 0.1, "mean_eval_loss": 2.0})
        for number, source in enumerate(["job:1", "round:a:1", "round:a:2", "round:b:2"], 1):
            row = f"({number}, 1, {number}, '{source}', '{{}}', 'sha256:{number:064x}', 'm', 'wegeft', 1, 3, '{metrics}', {moment}, 'ada')"
            connection.exec_driver_sql(f"INSERT INTO versions VALUES {row}")
    upgrade(engine)
    assert _evaluations(engine) == {(number, name) for number in (1, 2, 3, 4) for name in ("accuracy", "mean_eval_loss")}
    with reading(engine) as connection:
        assert [tuple(row) for row in connection.execute(select(catalog.LINEAGE))] == [(3, 2, "next_round")]
    engine.dispose()


def _evaluations(engine: Engine) -> set[tuple[int, str]]:
    with reading(engine) as connection:
        rows = connection.execute(select(catalog.EVALUATIONS.c.version_id, catalog.EVALUATIONS.c.metric))
        return {(row.version_id, row.metric) for row in rows}


def test_reports_at_once_wait_for_each_other(hub: Hub) -> None:
    """Each lists the version's values of the metric anew, the measured one among them."""
    hub.publish("round:7:1", "demo/x", metrics={"accuracy": 0.5})

    def report(number: int) -> float:
        told = EvaluationReport(metric="accuracy", value=number / 100, dataset_name=f"set {number}")
        with writing(hub.engine) as connection:
            return catalog.report_evaluation(connection, (NAME, 1), told, "ada", NOW).value

    with ThreadPoolExecutor(8) as pool:
        values = sorted(pool.map(report, range(24)))
    assert values == [number / 100 for number in range(24)]
    with reading(hub.engine) as connection:
        listed = connection.execute(select(catalog.LISTING_METRICS.c.value)).scalars().all()
    assert sorted(listed) == sorted([*values, 0.5])
