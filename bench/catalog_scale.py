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
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import quote

import httpx2
import psutil
from sqlalchemy import Connection, Engine, insert, text

from hub.catalog import ADAPTERS, LISTING_METRICS, LISTING_TAGS, LISTINGS, VERSIONS
from hub.catalog.words import stored_words
from infra.auth import Role, create_token
from infra.database import make_engine, upgrade, writing
from tests.servers import free_ports, running_postgres
from wegeft.contracts.adapter import FileEntry, Manifest, make_manifest

START = datetime(2026, 1, 1, tzinfo=UTC)
BASES = tuple(f"org-{number % 40}/model-{number}" for number in range(400))
TAGS = tuple(f"tag-{number}" for number in range(2000))
WORDS = tuple(
    f"{first}{second}{third}"
    for first in ("al", "be", "ga", "de")
    for second in ("ron", "vit", "lum", "sor", "mek")
    for third in ("a", "is", "on", "ix")
)
PAGE = 50
CHUNK = 5000
Timing = tuple[float, float]
"""Milliseconds: by the wall, and worked."""


def row_of(number: int, pick: random.Random) -> dict[str, Any]:
    """What an adapter of the bench is."""
    namespace, name = f"ns-{number % 997}", f"{pick.choice(WORDS)}-{pick.choice(WORDS)}-{number}"
    tags = [TAGS[min(int(pick.paretovariate(0.6)) - 1, len(TAGS) - 1)], *pick.sample(TAGS, 2)]
    base = f"{BASES[min(int(pick.paretovariate(0.5)) - 1, len(BASES) - 1)]}@{pick.randrange(5):040x}"
    return {
        "namespace": namespace, "name": name, "key": f"{namespace}/{name}", "base_model": base, "tags": list(dict.fromkeys(tags)),
        "method": pick.choice(("wegeft", "wegeft", "lora", "vera")), "rank": pick.choice((4, 8, 16, 64)), "size": pick.randrange(1 << 24),
        "task": "causal_lm", "licence": pick.choice(("apache-2.0", "mit", "")), "loss": pick.random(),
        "text": " ".join(pick.sample(WORDS, 12)),
    }  # fmt: skip


def chunks(rows: int) -> Iterator[range]:
    """Yield the numbers from 1 on in chunks."""
    return (range(first, min(first + CHUNK, rows + 1)) for first in range(1, rows + 1, CHUNK))


def fill(engine: Engine, rows: int) -> None:
    """Insert adapters, their versions and listings."""
    pick = random.Random(1)
    manifest = make_manifest((FileEntry(path="adapter_config.json", digest=f"sha256:{'0' * 64}", size=2),), {})
    for numbers in chunks(rows):
        made = [(number, row_of(number, pick), START + timedelta(seconds=number)) for number in numbers]
        with writing(engine) as connection:
            _insert(connection, made, manifest)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


def _insert(connection: Connection, made: Sequence[tuple[int, dict[str, Any], datetime]], manifest: Manifest) -> None:
    body, digest = manifest.to_bytes().decode(), f"sha256:{'1' * 64}"
    adapters, versions, listings, tags, metrics = [], [], [], [], []
    for number, row, at in made:
        same = {key: row[key] for key in ("base_model", "method", "rank", "size")}
        named = {key: row[key] for key in ("namespace", "name", "key")}
        adapters.append({**named, "id": number, "latest_number": 1, "next_number": 2, "created_at": at, "updated_at": at})
        versions.append({**same, "id": number, "adapter_id": number, "number": 1, "source": f"job:{number}", "manifest": body,
                         "manifest_digest": digest, "metrics": {"eval_loss": row["loss"]},
                         "created_at": at, "created_by": "bench"})  # fmt: skip
        words = stored_words([row["namespace"], row["name"], row["base_model"], row["method"], *row["tags"], row["text"]])
        listings.append({**same, "version_id": number, "adapter_id": number, "key": row["key"], "namespace": row["namespace"],
                         "base_name": row["base_model"].partition("@")[0], "task": row["task"], "licence": row["licence"],
                         "words": words})  # fmt: skip
        tags += [{"tag": tag, "version_id": number, "key": row["key"]} for tag in row["tags"]]
        metrics += [{"version_id": number, "name": name, "value": row["loss"]} for name in ("eval_loss", "train_loss")]
    for table, rows in ((ADAPTERS, adapters), (VERSIONS, versions), (LISTINGS, listings), (LISTING_TAGS, tags), (LISTING_METRICS, metrics)):
        connection.execute(insert(table), rows)


def queries() -> dict[str, Iterator[str]]:
    """Endless addresses by what they ask; each asks for the same as others, with other values."""
    pick = random.Random(5)

    def asking(*templates: str) -> Iterator[str]:
        while True:
            values = {"tag": pick.choice(TAGS), "top": TAGS[0], "base": quote(pick.choice(BASES), safe=""), "word": pick.choice(WORDS)}
            yield pick.choice(templates).format(**values, other=pick.choice(WORDS), begun=pick.choice(WORDS)[:4])

    return {
        "list, by name": asking("order=name"),
        "list, last published": asking("order=updated"),
        "by tag": asking("tag={tag}&order=updated", "tag={top}&order=updated", "tag={tag}&order=name", "tag={top}&order=name"),
        "by base model": asking("base_model={base}&order=updated", "base_model={base}&order=name"),
        "full text": asking("search={word}&order=updated", "search={word}+{other}&order=updated", "search={begun}&order=updated"),
        "full text, by name": asking("search={word}&order=name"),
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
    began = time.monotonic()
    fill(engine, rows)
    print(f"  {rows:,} adapters inserted in {time.monotonic() - began:.0f} s", flush=True)
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


def fill_mlflow(url: str, rows: int) -> None:
    """Insert registered models, a version of each and the same tags into MLflow's tables."""
    engine, pick = make_engine(url), random.Random(1)
    statements = (
        "INSERT INTO registered_models (name, creation_time, last_updated_time, description, workspace)"
        " VALUES (:name, :at, :at, '', 'default')",
        "INSERT INTO model_versions (name, version, creation_time, last_updated_time, current_stage, source, status, workspace)"
        " VALUES (:name, 1, :at, :at, 'None', 'x', 'READY', 'default')",
        "INSERT INTO registered_model_tags (name, key, value, workspace) VALUES (:name, :key, '1', 'default')",
    )
    columns = {table: _columns(engine, table) for table in ("registered_models", "model_versions", "registered_model_tags")}
    if "workspace" not in columns["registered_models"]:
        statements = tuple(one.replace(", workspace", "").replace(", 'default'", "") for one in statements)  # type: ignore[assignment]
    for numbers in chunks(rows):
        made = [(f"{row['namespace']}.{row['name']}", row["tags"], number) for number in numbers for row in [row_of(number, pick)]]
        with writing(engine) as connection:
            for statement in statements[:2]:
                connection.execute(text(statement), [{"name": name, "at": number} for name, _, number in made])
            connection.execute(text(statements[2]), [{"name": name, "key": tag} for name, tags, _ in made for tag in tags])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()


def _columns(engine: Engine, table: str) -> set[str]:
    from sqlalchemy import inspect

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
    began = time.monotonic()
    fill_mlflow(url, rows)
    print(f"  MLflow: {rows:,} models inserted in {time.monotonic() - began:.0f} s", flush=True)
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
            tag = pick.choice((pick.choice(TAGS), TAGS[0]))
            yield quote(f"tags.`{tag}` = '1'", safe="")

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
