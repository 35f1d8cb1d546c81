"""Lists, tag filters, base-model filters and full text answer within 20 ms at the 95th percentile over HTTP, at a million adapters,
and a tag filter is 20 times as fast as MLflow's registry with as many rows in the same database engine.

The rows are inserted by SQL: one version an adapter, three tags, two metrics. Ours are served by the real application behind uvicorn, in
a process of its own, with its token check, request log and metrics; answers hold 50 adapters. MLflow is asked by its own HTTP API, in its
own process and its own virtual environment (`--mlflow FOLDER`), for the 50 models of a tag; its rows are inserted by SQL too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import quote

import httpx2
import psutil
from sqlalchemy import Engine, inspect, text

from infra.auth import Role, create_token
from infra.database import make_engine, upgrade, writing
from tests.servers import free_ports, running_postgres

PAGE = 50
BASES, TAGS, WORDS, RARE = 400, 2000, 500, 5000
"""How many different values there are; the first bases and tags belong to many more adapters than the last."""
Timing = tuple[float, float]
"""Milliseconds: by the wall, and worked."""


def some(salt: int, values: int, skew: int = 1) -> str:
    """Return an SQL expression of a number below ``values`` that looks drawn, from the adapter's number ``i``; the same on every engine."""
    drawn = f"((i * {7919 + 2 * salt} + {104_729 * salt}) % 1000003 % {values})"
    return drawn if skew == 1 else f"({drawn} / (1 + (i * {6007 + salt}) % {skew}))"


_NAMESPACE, _KEY = "'ns-' || (i % 997)", f"'ns-' || (i % 997) || '/' || 'word' || {some(1, WORDS)} || '-' || i"
_BASE_NUMBER, _METHOD = some(2, BASES, 40), f"CASE {some(3, 4)} WHEN 0 THEN 'lora' WHEN 1 THEN 'vera' ELSE 'wegeft' END"
_BASE = f"'org-' || ({_BASE_NUMBER} % 40) || '/model-' || {_BASE_NUMBER}"
_WORDS = (
    f"'ns ' || (i % 997) || ' org model ' || {_METHOD} || ' word' || {some(4, WORDS)} || ' word' || {some(5, WORDS, 30)} || ' topic'"
    f" || {some(6, 20)} || ' rare' || {some(7, RARE)}"
)
_TAG_SALTS = (8, 9, 10)
_NUMBERS = "(WITH RECURSIVE r(i) AS (SELECT CAST(1 AS bigint) UNION ALL SELECT i + 1 FROM r WHERE i < {rows}) SELECT i FROM r) AS numbers"


def fill_statements(rows: int, engine: str) -> list[str]:
    """Return what inserts adapters, a version of each, and their listings, tags and metrics."""
    at, numbers = "'2026-01-01 00:00:00.000000'", _NUMBERS.format(rows=rows)
    at, words = (f"CAST({at} AS timestamptz)", f"CAST({_WORDS} AS tsvector)") if engine == "postgresql" else (at, _WORDS)
    metrics, digest = ("CAST('{}' AS json)" if engine == "postgresql" else "'{}'"), f"'sha256:{'1' * 64}'"
    size, pin = some(11, 1_000_000), "'@' || 'abc'"
    tags = [
        f"INSERT INTO listing_tags (tag, version_id, key) SELECT 'tag-' || {some(salt, TAGS, 300)}, i, {_KEY} FROM {numbers} WHERE true"
        " ON CONFLICT DO NOTHING"
        for salt in _TAG_SALTS
    ]
    return [
        "INSERT INTO adapters (id, key, namespace, name, latest_number, next_number, created_at, updated_at)"
        f" SELECT i, {_KEY}, {_NAMESPACE}, 'word' || {some(1, WORDS)} || '-' || i, 1, 2, {at}, {at} FROM {numbers}",
        "INSERT INTO versions (id, adapter_id, number, source, manifest, manifest_digest, base_model, method, rank, size, metrics,"
        f" created_at, created_by) SELECT i, i, 1, 'job:' || i, '{{}}', {digest}, {_BASE} || {pin}, {_METHOD}, 8, {size}, {metrics}, {at},"
        f" 'bench' FROM {numbers}",
        "INSERT INTO listings (version_id, adapter_id, key, namespace, base_name, base_model, method, rank, size, task, licence, words)"
        f" SELECT i, i, {_KEY}, {_NAMESPACE}, {_BASE}, {_BASE} || {pin}, {_METHOD}, 8, {size}, 'causal_lm', 'mit', {words} FROM {numbers}",
        *tags,
        *(
            f"INSERT INTO listing_metrics (version_id, name, value) SELECT i, '{name}', {some(12, 1000)} / 1000.0 FROM {numbers}"
            for name in ("eval_loss", "train_loss")
        ),
    ]


def fill(engine: Engine, statements: Sequence[str]) -> float:
    """Run statements, each in a transaction of its own, then gather statistics; return the seconds."""
    began = time.monotonic()
    for statement in statements:
        with writing(engine) as connection:
            connection.exec_driver_sql(statement.replace("%", "%%") if engine.dialect.name == "postgresql" else statement)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
    return time.monotonic() - began


def queries() -> dict[str, Iterator[str]]:
    """Endless addresses by what they ask; each asks for the same as others, with other values."""
    pick = random.Random(5)

    def asking(*templates: str) -> Iterator[str]:
        while True:
            base = pick.choice((0, pick.randrange(BASES)))
            values = {"tag": f"tag-{pick.choice((0, pick.randrange(TAGS)))}", "base": quote(f"org-{base % 40}/model-{base}", safe="")}
            words = {"word": f"word{pick.randrange(WORDS)}", "topic": f"topic{pick.randrange(20)}", "rare": f"rare{pick.randrange(RARE)}"}
            yield pick.choice(templates).format(**values, **words)

    return {
        "list, by name": asking("order=name"),
        "list, last published": asking("order=updated"),
        "by tag": asking("tag={tag}&order=updated", "tag={tag}&order=name"),
        "by base model": asking("base_model={base}&order=updated", "base_model={base}&order=name"),
        "full text": asking(
            "search={word}&order=updated", "search={topic}+{word}&order=updated", "search={rare}", "search=model+{topic}&order=updated"
        ),
        "full text, many, by name": asking("search={topic}&order=name"),
        "tag and base model": asking("tag={tag}&base_model={base}&order=updated"),
        "metric bound": asking("metric=eval_loss%3C0.01&order=updated"),
    }


@dataclass(frozen=True)
class Server:
    """A server that is asked, and the processes that work for it."""

    client: httpx2.Client
    processes: tuple[psutil.Process, ...]
    """With all that they have started."""

    def ask(self, address: str) -> tuple[Timing, httpx2.Response]:
        """Ask one question."""
        worked, began = self._worked(), time.perf_counter()
        answer = self.client.get(address)
        taken = (time.perf_counter() - began) * 1000
        if answer.status_code != 200:
            raise SystemExit(f"{address}: {answer.status_code} {answer.text[:500]}")
        return (taken, self._worked() - worked), answer

    def _worked(self) -> float:
        """Return the milliseconds that the processes have been on a core, by Linux's schedstat."""
        everybody = {one.pid for parent in self.processes for one in (parent, *parent.children(recursive=True))}
        total = 0
        for path in (path for pid in everybody for path in Path(f"/proc/{pid}/task").glob("*/schedstat")):
            with contextlib.suppress(OSError):
                total += int(path.read_text().split()[0])
        return total / 1e6


def measure(server: Server, path: str, kinds: dict[str, Iterator[str]], turns: int) -> dict[str, list[Timing]]:
    """Return what each kind of question took, after five that do not count."""
    found: dict[str, list[Timing]] = {}
    for kind, addresses in kinds.items():
        found[kind] = [server.ask(f"{path}{address}")[0] for address in islice(addresses, turns + 5)][5:]
        tell(kind, found[kind])
    return found


def tell(kind: str, taken: list[Timing]) -> None:
    shown = []
    for name, values in zip(("wall", "worked"), zip(*taken, strict=True), strict=True):
        shown.append(f"{name} p50 {median(values):7.2f} p95 {quantiles(values, n=20)[18]:7.2f}")
    print(f"  {kind:<24} ms: {'; '.join(shown)}", flush=True)


@contextlib.contextmanager
def serving(url: str, token_file: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run our application over a database, in a process of its own; give its address and the process."""
    [port] = free_ports(1)
    command = [sys.executable, "-m", "bench.catalog_scale", "--serve", url, "--port", str(port)]
    with _process(command, f"http://127.0.0.1:{port}/healthz", token_file.with_suffix(".log")) as process:
        yield f"http://127.0.0.1:{port}", process


@contextlib.contextmanager
def _process(command: list[str], ready: str, log: Path, environment: dict[str, str] | None = None) -> Iterator[psutil.Process]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | (environment or {}))
        try:
            until = time.monotonic() + 900
            while time.monotonic() < until:
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} ended: {log.read_text()[-2000:]}")
                with contextlib.suppress(httpx2.HTTPError):
                    if httpx2.get(ready, timeout=5, trust_env=False).status_code == 200:
                        break
                time.sleep(0.3)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(timeout=60)


def serve(url: str, port: int) -> None:
    """Serve the hub's API, as the service does."""
    import uvicorn

    from hub import api
    from hub.objects import MemoryStore
    from hub.services import HubServices
    from infra.auth import Guard
    from infra.http import create_app
    from infra.telemetry import configure_logging

    configure_logging("json", "info")
    engine = make_engine(url)
    services = HubServices(engine=engine, store=MemoryStore(), clock=lambda: datetime.now(UTC))
    app = create_app([api.make_router(services, Guard(engine=engine, clock=services.clock))], title="bench", version="0")
    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False, lifespan="off")


def run_ours(url: str, rows: int, turns: int, folder: Path) -> dict[str, list[Timing]]:
    engine = make_engine(url)
    upgrade(engine)
    print(f"  {rows:,} adapters inserted in {fill(engine, fill_statements(rows, engine.dialect.name)):.0f} s", flush=True)
    with writing(engine) as connection:
        _, token = create_token(connection, "bench", Role.READ, datetime.now(UTC))
    engine.dispose()
    headers = {"Authorization": f"Bearer {token}"}
    with serving(url, folder / "ours.token") as (address, process), _client(address, headers) as client:
        server = Server(client, (process, *database_of(url)))
        found = measure(server, f"/api/v1/adapters?limit={PAGE}&", queries(), turns)
        found["deep page"] = _deep(server, turns)
        tell("deep page", found["deep page"])
    return found


def _client(address: str, headers: dict[str, str] | None = None) -> httpx2.Client:
    return httpx2.Client(base_url=address, headers=headers, timeout=900, trust_env=False)


def database_of(url: str) -> tuple[psutil.Process, ...]:
    """Return the database's own process; none where it works within the one that asks."""
    engine = make_engine(url)
    if engine.dialect.name == "sqlite":
        return ()
    with engine.connect() as connection:
        backend = psutil.Process(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        parent = backend.parent()
    engine.dispose()
    return () if parent is None else (parent,)


def _deep(server: Server, turns: int) -> list[Timing]:
    """Return what pages took, one after the other by their cursors."""
    taken, after = [], ""
    for _ in range(turns):
        timing, answer = server.ask(f"/api/v1/adapters?limit=100&order=updated{after}")
        taken.append(timing)
        after = f"&after={answer.json()['next_cursor']}" if answer.json()["next_cursor"] else ""
    return taken


def mlflow_statements(rows: int, has_workspaces: bool) -> list[str]:
    """Return what inserts registered models, a version of each and the same tags into MLflow's tables."""
    numbers, name = _NUMBERS.format(rows=rows), _KEY.replace("'/'", "'.'")
    column, value = (", workspace", ", 'default'") if has_workspaces else ("", "")
    return [
        f"INSERT INTO registered_models (name, creation_time, last_updated_time, description{column}) SELECT {name}, i, i, ''{value}"
        f" FROM {numbers}",
        f"INSERT INTO model_versions (name, version, creation_time, last_updated_time, current_stage, source, status{column})"
        f" SELECT {name}, 1, i, i, 'None', 'x', 'READY'{value} FROM {numbers}",
        *(
            f"INSERT INTO registered_model_tags (name, key, value{column}) SELECT {name}, 'tag-' || {some(salt, TAGS, 300)}, '1'{value}"
            f" FROM {numbers} WHERE true ON CONFLICT DO NOTHING"
            for salt in _TAG_SALTS
        ),
    ]


def _columns(engine: Engine, table: str) -> set[str]:
    return {column["name"] for column in inspect(engine).get_columns(table)}


def run_mlflow(venv: Path, url: str, rows: int, turns: int, folder: Path) -> dict[str, list[Timing]]:
    """Ask MLflow for the models of a tag."""
    program, plain = venv / "bin" / "mlflow", url.replace("+psycopg", "+psycopg2")
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PYTHONPATH": "",
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
    }
    subprocess.run([program, "db", "upgrade", plain], check=True, capture_output=True, env=os.environ | environment)
    engine = make_engine(url)
    seconds = fill(engine, mlflow_statements(rows, "workspace" in _columns(engine, "registered_models")))
    engine.dispose()
    print(f"  MLflow: {rows:,} models inserted in {seconds:.0f} s", flush=True)
    [port] = free_ports(1)
    command = [
        str(program),
        "server",
        "--backend-store-uri",
        plain,
        "--port",
        str(port),
        "--workers",
        "1",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    pick = random.Random(5)

    def asking() -> Iterator[str]:
        while True:
            yield quote(f"tags.`tag-{pick.choice((0, pick.randrange(TAGS)))}` = '1'", safe="")

    address = f"http://127.0.0.1:{port}"
    with _process(command, f"{address}/health", folder / "mlflow.log", environment) as process, _client(address) as client:
        path = f"/api/2.0/mlflow/registered-models/search?max_results={PAGE}&filter="
        return measure(Server(client, (process, *database_of(url))), path, {"MLflow, by tag": asking()}, turns)


@contextlib.contextmanager
def databases(engine: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Give an empty database for us and one for MLflow."""
    if engine == "sqlite":
        yield f"sqlite:///{folder / 'ours.db'}", f"sqlite:///{folder / 'mlflow.db'}"
        return
    with running_postgres() as server:
        yield server.new_database(), server.new_database()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="adapters")
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), action="append", help="default: both, one after the other")
    parser.add_argument("--turns", type=int, default=200, help="questions of each kind")
    parser.add_argument(
        "--mlflow", type=Path, help="virtual environment that has mlflow (and psycopg2-binary); without it MLflow is left out"
    )
    parser.add_argument("--mlflow-turns", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.port)
        return
    figures: dict[str, dict[str, list[Timing]]] = {}
    for engine in given.engine or ("sqlite", "postgresql"):
        print(f"{engine}, {given.rows:,} adapters", flush=True)
        with tempfile.TemporaryDirectory(prefix="wgbench-") as name, databases(engine, Path(name)) as (ours, theirs):
            found = figures[engine] = run_ours(ours, given.rows, given.turns, Path(name))
            if given.mlflow:
                found |= run_mlflow(given.mlflow, theirs, given.rows, given.mlflow_turns, Path(name))
                for column, clock in enumerate(("by the wall", "by what was worked")):
                    theirs_ms, ours_ms = (median(one[column] for one in found[kind]) for kind in ("MLflow, by tag", "by tag"))
                    print(f"  tag filter, medians {clock}: {theirs_ms / ours_ms:.1f} times as fast as MLflow", flush=True)
    if given.json:
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
