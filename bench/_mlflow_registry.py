"""MLflow's model registry with the same adapters in it: a model and a version of each, and its tags; put there in bulk, for its own API
takes some milliseconds for each of them.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect

from bench._catalog_rows import Drawn, Row
from infra.database import make_engine, writing

_ROWS_AT_ONCE = 20_000
_TABLES: dict[str, tuple[str, ...]] = {
    "registered_models": ("name", "creation_time", "last_updated_time", "description"),
    "model_versions": ("name", "version", "creation_time", "last_updated_time", "current_stage", "source", "status"),
    "registered_model_tags": ("name", "key", "value"),
}


def environment_of(venv: Path) -> dict[str, str]:
    """Return what MLflow's programs run with."""
    own = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "PYTHONPATH": "", "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
    return os.environ | own


def prepare(venv: Path, url: str, rows: int) -> float:
    """Make MLflow's tables where there are none, and fill them; return the seconds that filling took."""
    command = [venv / "bin" / "mlflow", "db", "upgrade", store_of(url)]
    subprocess.run(command, check=True, capture_output=True, env=environment_of(venv))
    engine, began = make_engine(url), time.monotonic()
    with writing(engine) as connection:
        if connection.exec_driver_sql("SELECT count(*) FROM registered_models").scalar_one() == 0:
            _fill(connection, rows)
    _analyze(engine)
    engine.dispose()
    return time.monotonic() - began


def store_of(url: str) -> str:
    """Return the address of a database as MLflow takes it."""
    return url.replace("+psycopg", "+psycopg2")


def _analyze(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE" if engine.dialect.name == "sqlite" else "VACUUM ANALYZE")


def _fill(connection: Connection, rows: int) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
    has_workspaces = "workspace" in {column["name"] for column in inspect(connection).get_columns("registered_models")}
    own: tuple[str, ...] = ("workspace",) if has_workspaces else ()
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    for table, columns in _TABLES.items():
        names = (*columns, *own)
        statement = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join([mark] * len(names))})"
        made = _rows(table, rows, ("default",) if own else ())
        while some := list(islice(made, _ROWS_AT_ONCE)):
            connection.exec_driver_sql(statement, some)


def _rows(table: str, rows: int, own: Row) -> Iterator[Row]:
    for number in range(1, rows + 1):
        one = Drawn(number)
        name = f"{one.namespace}.{one.name}"
        match table:
            case "registered_models":
                yield name, number, number, one.text, *own
            case "model_versions":
                yield name, 1, number, number, "None", f"job:{number}", "READY", *own
            case _:
                for tag in one.tags:
                    yield name, tag, "1", *own


def command_of(venv: Path, url: str, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves the registry, with one process for its API, and its environment."""
    program = [str(venv / "bin" / "mlflow"), "server", "--backend-store-uri", store_of(url), "--port", str(port), "--workers", "1"]
    return [*program, "--artifacts-destination", str(folder / "artifacts")], environment_of(venv)
