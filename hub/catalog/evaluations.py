"""What was measured of versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from hub.catalog.listings import list_values
from hub.catalog.provenance_tables import EVALUATIONS
from hub.catalog.repositories import lock_latest
from hub.catalog.signatures import find_version_id
from hub.catalog.tables import upsert
from infra import audit
from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.errors import TooLarge
from wegeft.contracts.provenance import EvaluationReport, EvaluationView, is_evaluation

MAX_REPORTS = 1000
"""Of one version."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Who has measured what figures, and on which data set."""

    metrics: Mapping[str, float]
    by: str
    dataset_digest: str | None = None
    dataset_name: str | None = None


def record_measured(connection: Connection, version_id: int, measured: Measured, now: datetime) -> None:
    """Note those of a job's figures that are evaluations of the version that it made."""
    told = {"dataset_digest": measured.dataset_digest or "", "dataset_name": measured.dataset_name or "", "is_reported": 0}
    for name, value in sorted(measured.metrics.items()):
        if is_evaluation(name):
            row = {"version_id": version_id, "metric": name, "value": value, "created_at": now, "created_by": measured.by, **told}
            connection.execute(upsert(connection, EVALUATIONS).values(row).on_conflict_do_nothing())


def report_evaluation(
    connection: Connection, where: tuple[AdapterName, int], report: EvaluationReport, by: str, now: datetime
) -> EvaluationView:
    """Note what somebody has measured of a version; measured again on the same data, the new value stands."""
    lock_latest(connection, where[0])  # so that two reports, or a report and a publication, do not list the version at once
    version_id = find_version_id(connection, *where)
    count = select(func.count()).select_from(EVALUATIONS).where(EVALUATIONS.c.version_id == version_id)
    if connection.execute(count).scalar_one() >= MAX_REPORTS:
        raise TooLarge("the version has too many evaluations", path="metric", value=report.metric, hint=f"at most {MAX_REPORTS}")
    row: dict[str, Any] = {
        "version_id": version_id,
        "metric": report.metric,
        "value": report.value,
        "dataset_digest": report.dataset_digest or "",
        "dataset_name": report.dataset_name or "",
        "is_reported": 1,
        "created_at": now,
        "created_by": by,
    }
    keys = ["version_id", "metric", "dataset_digest", "dataset_name", "is_reported"]
    added = upsert(connection, EVALUATIONS).values(row)
    changed = added.on_conflict_do_update(index_elements=keys, set_={name: row[name] for name in ("value", "created_at", "created_by")})
    connection.execute(changed)
    list_values(connection, version_id, report.metric)
    audit.note(connection, "evaluation.report", f"{where[0]}@{where[1]}", now, metric=report.metric, value=report.value)
    return _view({**row, "version": where[1]})


def list_evaluations(connection: Connection, adapter: AdapterName, number: int) -> tuple[EvaluationView, ...]:
    """Return what was measured of a version, by metric."""
    version_id = find_version_id(connection, adapter, number)
    order = (EVALUATIONS.c.metric, EVALUATIONS.c.is_reported, EVALUATIONS.c.dataset_digest, EVALUATIONS.c.dataset_name)
    rows = connection.execute(select(EVALUATIONS).where(EVALUATIONS.c.version_id == version_id).order_by(*order))
    return tuple(_view({**row._mapping, "version": number}) for row in rows)  # noqa: SLF001 - the name is SQLAlchemy's


def _view(row: Mapping[str, Any]) -> EvaluationView:
    told = {"dataset_digest": row["dataset_digest"] or None, "dataset_name": row["dataset_name"] or None}
    return EvaluationView.model_validate({**row, **told, "is_reported": bool(row["is_reported"])})
