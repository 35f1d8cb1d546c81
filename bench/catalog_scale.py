"""Lists, tag filters, base-model filters and full text answer within 20 ms at the 95th percentile over HTTP, at a million adapters,
and a tag filter is 20 times as fast as MLflow's registry with as many rows in the same database engine.

The rows are those that publishing writes, one version an adapter, three tags, two metrics, inserted in bulk. Ours are served by the real
application behind uvicorn, in a process of its own, with its token check, request log and metrics; answers hold 50 adapters. MLflow is
asked by its own HTTP API, in its own process and its own virtual environment (`--mlflow FOLDER`), for the 50 models of a tag. Listings
are read once before anything is asked, for a hub that has been running has them in memory.
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
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import quote

import httpx2
import psutil
from sqlalchemy import Engine, text

from bench import _mlflow_registry
from bench._catalog_rows import BASES, METHODS, RARE, TAGS, TASKS, WORDS, fill
from infra.auth import Role, create_token
from infra.database import make_engine, upgrade, writing
from tests.servers import free_ports, running_postgres

PAGE = 50
Timing = tuple[float, float]
"""Milliseconds: by the wall, and worked."""

_KINDS: dict[str, tuple[str, ...]] = {
    "list, by name": ("?order=name",),
    "list, last published": ("?order=updated",),
    "list, newest or largest": ("?order=created", "?order=size"),
    "by tag": ("?tag={tag}&order=updated", "?tag={tag}&order=name"),
    "by base model": ("?base_model={base}&order=updated", "?base_model={base}&order=name"),
    "full text": ("?search={word}&order=updated", "?search={topic}+{word}", "?search={rare}", "?search=model+{topic}&order=updated"),
    "full text, many, by name": ("?search={topic}&order=name", "?search=top&order=name", "?search=model&order=size"),
    "full text, none": ("?search={topic}+nothing", "?search={word}+{rare}+{other}"),
    "by method, task, licence": ("?method={method}&task={task}", "?license=other&rank=32&order=updated", "?method=vera&order=size"),
    "by format, signed or not": ("?format=lora&order=updated", "?signed=false&order=updated", "?signed=true&format=peft"),
    "by namespace": ("?namespace=ns-{ns}", "?namespace=ns-{ns}&method={method}&order=updated"),
    "two tags": ("?tag={tag}&tag={tag_too}&order=updated", "?tag={tag}&tag={tag_too}&order=name"),
    "tag and base model": ("?tag={tag}&base_model={base}&order=updated", "?tag={tag}&base_model={base}&order=name"),
    "base, method and task": ("?base_model={base}&method={method}&task={task}&order=updated",),
    "tag, base, text, metric": ("?tag={tag}&base_model={base}&search={topic}&metric=eval_loss%3C0.5&order=updated",),
    "text and base model": ("?search={topic}&base_model={base}&order=updated", "?search={word}&base_model={base}&order=name"),
    "text and tag": ("?search={topic}&tag={tag}&order=name", "?search={word}&tag={tag}&order=updated"),
    "never together": ("?search={topic}&base_model={base}&method=hra", "?tag={tag}&namespace=ns-{ns}&license=none"),
    "metric bound": ("?metric=eval_loss%3C0.01&order=updated", "?metric=eval_loss%3C0.3&order=name", "?metric=train_loss%3E%3D2"),
    "metric bounds, tag": ("?metric=eval_loss%3C0.01&metric=train_loss%3C0.02&tag={tag}&order=updated",),
    "facets": ("/facets",),
    "facets of a tag or base": ("/facets?tag={tag}", "/facets?base_model={base}"),
    "facets of a text": ("/facets?search={topic}", "/facets?search={word}+{topic}", "/facets?search={rare}"),
    "facets of many filters": ("/facets?tag={tag}&base_model={base}&method={method}", "/facets?metric=eval_loss%3C0.1&tag={tag}"),
}
_DEEP = {
    "deep, last published": "?order=updated",
    "deep, by name": "?order=name",
    "deep, largest": "?order=size",
    "deep, of a tag": "?tag=tag-0&order=name",
    "deep, of a text": "?search=topic3&order=updated",
}


def queries() -> dict[str, Iterator[str]]:
    """Endless addresses by what they ask; each asks for the same as others, with other values."""
    pick = random.Random(5)

    def asking(templates: tuple[str, ...]) -> Iterator[str]:
        while True:
            base = pick.choice((0, pick.randrange(BASES)))
            tags = {name: f"tag-{pick.choice((0, pick.randrange(TAGS)))}" for name in ("tag", "tag_too")}
            words = {"word": f"word{pick.randrange(WORDS)}", "topic": f"topic{pick.randrange(20)}", "rare": f"rare{pick.randrange(RARE)}"}
            others = {"other": f"word{pick.randrange(WORDS)}", "ns": pick.randrange(997), "method": pick.choice(METHODS)}
            base_name = quote(f"org-{base % 40}/model-{base}", safe="")
            yield pick.choice(templates).format(base=base_name, task=pick.choice(TASKS), **tags, **words, **others)

    return {kind: asking(templates) for kind, templates in _KINDS.items()}


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
        asked = [(address, server.ask(f"{path}{address}")[0]) for address in islice(addresses, turns + 5)][5:]
        found[kind] = [timing for _, timing in asked]
        tell(kind, found[kind], max(asked, key=lambda one: one[1])[0])
    return found


def tell(kind: str, taken: list[Timing], slowest: str = "") -> None:
    shown = []
    for name, values in zip(("wall", "worked"), zip(*taken, strict=True), strict=True):
        shown.append(f"{name} p50 {median(values):7.2f} p95 {quantiles(values, n=20)[18]:7.2f}")
    print(f"  {kind:<24} ms: {'; '.join(shown)}; most {max(wall for wall, _ in taken):7.2f} {slowest}", flush=True)


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
    from cli.listening import listening, run_http
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
    with listening("127.0.0.1", port) as listener:
        run_http(app, listener, lambda: None, least_download_rate=0)


def run_ours(url: str, rows: int, turns: int, folder: Path) -> dict[str, list[Timing]]:
    """Ask us every kind of question, of a catalog that is filled where it is empty."""
    engine = make_engine(url)
    upgrade(engine)
    with engine.connect() as connection:
        is_empty = connection.execute(text("SELECT 1 FROM adapters LIMIT 1")).one_or_none() is None
    if is_empty:
        print(f"  {rows:,} adapters inserted in {fill(engine, rows):.0f} s", flush=True)
    with writing(engine) as connection:
        _, token = create_token(connection, "bench", Role.READ, datetime.now(UTC))
    _read_once(engine)
    engine.dispose()
    headers = {"Authorization": f"Bearer {token}"}
    with serving(url, folder / "ours.token") as (address, process), _client(address, headers) as client:
        server = Server(client, (process, *database_of(url)))
        found = measure(server, "/api/v1/adapters", queries(), turns)
        for kind, question in _DEEP.items():
            found[kind] = _deep(server, question, turns)
            tell(kind, found[kind])
    return found


def _read_once(engine: Engine) -> None:
    """Let the database have in memory what lists are read from."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            # What reads a whole table one page after the other keeps none of them.
            connection.execute(text("SET enable_seqscan = off"))
            connection.execute(text("SELECT count(version_id) FROM listing_words_marks WHERE key > ''"))
            connection.execute(text("SELECT count(marks) FROM listing_words_marks WHERE version_id > 0"))
        for column, table, indexed in (
            ("base_model", "listings", "key"),
            ("updated_at", "adapters", "key"),
            ("key", "listing_tags", "tag"),
            ("version_id", "listing_tags", "tag"),
        ):
            connection.execute(text(f"SELECT count({column}) FROM {table} WHERE {indexed} > ''"))


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


def _deep(server: Server, question: str, turns: int) -> list[Timing]:
    """Return what pages took, one after the other by their cursors, from the beginning again where they end."""
    taken, after = [], ""
    for _ in range(turns):
        timing, answer = server.ask(f"/api/v1/adapters{question}{after}")
        taken.append(timing)
        after = f"&after={answer.json()['next_cursor']}" if answer.json()["next_cursor"] else ""
    return taken


def run_mlflow(venv: Path, url: str, rows: int, turns: int, folder: Path) -> dict[str, list[Timing]]:
    """Ask MLflow for the models of a tag."""
    print(f"  MLflow: {rows:,} models inserted in {_mlflow_registry.prepare(venv, url, rows):.0f} s", flush=True)
    [port] = free_ports(1)
    command, environment = _mlflow_registry.command_of(venv, url, port, folder)
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
        # As `docker-compose.yml` does; PostgreSQL comes with 128 MB, which hold neither the listings nor their indexes.
        server.execute("ALTER SYSTEM SET shared_buffers = '1GB'")
        with server.stopped():
            pass
        yield server.new_database(), server.new_database()


def run(engine: str, given: argparse.Namespace) -> dict[str, list[Timing]]:
    """Ask us, and MLflow where it is given, over one database engine."""
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="wgbench-")))
        ours, theirs = given.database or opened.enter_context(databases(engine, folder))
        found = run_ours(ours, given.rows, given.turns, folder)
        if given.mlflow:
            found |= run_mlflow(given.mlflow, theirs, given.rows, given.mlflow_turns, folder)
            for column, clock in enumerate(("by the wall", "by what was worked")):
                theirs_ms, ours_ms = (median(one[column] for one in found[kind]) for kind in ("MLflow, by tag", "by tag"))
                print(f"  tag filter, medians {clock}: {theirs_ms / ours_ms:.1f} times as fast as MLflow", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="adapters")
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), action="append", help="default: both, one after the other")
    parser.add_argument("--turns", type=int, default=200, help="questions of each kind")
    parser.add_argument(
        "--mlflow", type=Path, help="virtual environment that has mlflow (and psycopg2-binary); without it MLflow is left out"
    )
    parser.add_argument("--mlflow-turns", type=int, default=40)
    parser.add_argument(
        "--database",
        nargs=2,
        metavar=("OURS", "MLFLOW"),
        help="databases to fill where they are empty, and to leave; one engine",
    )
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
        figures[engine] = run(engine, given)
    if given.json:
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
