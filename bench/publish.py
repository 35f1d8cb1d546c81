"""Publishing an adapter of 1 MB for good, against MLflow's artifact upload and new model version; and of 32 who publish to one adapter at
once, one wins for each parent and no version is lost.

    python -m bench.publish --mlflow FOLDER    # FOLDER: a virtual environment that has mlflow; without it MLflow is left out

The hub runs in a process of its own, as `wgctl serve` starts it, on SQLite with blobs in a folder, each synced to the disk. Publishing is
the client library's ``Client.push``, as `wgctl adapters push` calls it: the bytes are hashed on both sides, the tensors are checked, the
version is signed, and it is committed to the database. MLflow runs in its own environment with its own server, SQLite and a folder for
artifacts, and is asked by its HTTP API on one open connection: the artifacts are put, then the model version is created. It neither checks
nor signs, and does not sync what it is sent. Both answer to one client at a time; turns take each other's place.

Writers that name the parent get 412 where another was sooner, look again and try again, until each has published once.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import httpx2

from bench._adapter_files import write_adapter
from bench._hub_process import HubProcess, answering, running_hub
from tests.servers import free_ports
from wegeft.client import Client
from wegeft.contracts.errors import Conflict, StaleParent

NAME, CONTESTED, MEGABYTE = "bench/one", "bench/contested", 10**6
_SMALL = 20_000


def tell(kind: str, seconds: list[float]) -> None:
    taken = [1000 * one for one in seconds]
    print(f"  {kind:<40} ms: p50 {median(taken):7.2f}  p95 {quantiles(taken, n=20)[18]:7.2f}  least {min(taken):7.2f}", flush=True)


def pushing(client: Client, folders: Iterator[Path]) -> Callable[[], None]:
    """Return what publishes another adapter each time."""
    return lambda: client.push(next(folders), NAME) and None


@contextmanager
def mlflow_publishing(venv: Path, folder: Path, folders: Iterator[Path]) -> Iterator[Callable[[], None]]:
    """Run MLflow; give what uploads another adapter each time and makes a version of it."""
    [port] = free_ports(1)
    url, program = f"http://127.0.0.1:{port}", str(venv / "bin" / "mlflow")
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "PYTHONPATH": "", "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
    kept = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts")]
    command = [program, "server", *kept, "--port", str(port), "--workers", "1"]
    with (
        (folder / "mlflow.log").open("wb") as log,
        answering(command, f"{url}/health", log, os.environ | quiet),
        httpx2.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        http.post("/api/2.0/mlflow/registered-models/create", json={"name": "one"}).raise_for_status()
        run = http.post("/api/2.0/mlflow/runs/create", json={"experiment_id": "0"}).raise_for_status().json()["run"]["info"]
        numbers = iter(range(10**9))

        def publish() -> None:
            source = f"{run['artifact_uri']}/{next(numbers)}"
            place = source.removeprefix("mlflow-artifacts:/")
            for path in sorted(next(folders).iterdir()):
                put = http.put(f"/api/2.0/mlflow-artifacts/artifacts/{place}/{path.name}", content=path.read_bytes())
                put.raise_for_status()
            made = {"name": "one", "source": source, "run_id": run["run_id"]}
            http.post("/api/2.0/mlflow/model-versions/create", json=made).raise_for_status()

        yield publish


def run_latency(hub: HubProcess, venv: Path | None, folder: Path, turns: int) -> None:
    folders = [write_adapter(folder / f"adapter-{turn}", MEGABYTE, turn) for turn in range(turns + 3)]
    with ExitStack() as stack:
        client = stack.enter_context(Client(hub.url, hub.token))
        kinds = {"push, checked, signed and synced": pushing(client, iter(folders))}
        if venv:
            kinds["MLflow, artifacts and version"] = stack.enter_context(mlflow_publishing(venv, folder, iter(folders)))
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(turns + 3):
            for kind, work in kinds.items():
                began = time.perf_counter()
                work()
                if turn >= 3:
                    taken[kind].append(time.perf_counter() - began)
    for kind, seconds in taken.items():
        tell(kind, seconds)
    if venv:
        ours, theirs = (median(seconds) for seconds in taken.values())
        print(f"  a push takes {ours / theirs:.2f} × as long as MLflow's upload and version", flush=True)


def _commit(client: Client, name: str) -> str:
    return client.resolve(name).manifest_digest.removeprefix("sha256:")[:40]


@dataclass
class Contest:
    """Writers who begin at once, and who of them won on top of which version."""

    hub: HubProcess
    start: threading.Barrier
    won: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def write(self, adapter: Path) -> int:
        """Push on top of the version that is seen, until it is the newest; return the number."""
        with Client(self.hub.url, self.hub.token, patience_seconds=60) as client:
            self.start.wait()
            while True:
                parent = _commit(client, CONTESTED)
                try:
                    made = client.push(adapter, CONTESTED, parent=parent)
                except StaleParent:
                    self.lost[parent] += 1
                else:
                    self.won[parent] += 1
                    return made.version

    def add(self, adapter: Path) -> int:
        """Push on top of whatever is newest; return the number."""
        with Client(self.hub.url, self.hub.token, patience_seconds=60) as client:
            self.start.wait()
            while True:
                try:
                    return client.push(adapter, CONTESTED).version
                except StaleParent:
                    raise
                except Conflict:
                    self.lost["no parent"] += 1


def run_contest(hub: HubProcess, folder: Path, writers: int) -> None:
    """Let so many publish at once, each on top of the version that it has seen; then as many who name no parent."""
    adapters = [write_adapter(folder / f"small-{writer}", _SMALL, 1000 + writer) for writer in range(2 * writers + 1)]
    contest = Contest(hub, threading.Barrier(writers))
    with Client(hub.url, hub.token) as client, ThreadPoolExecutor(writers) as pool:
        client.push(adapters[0], CONTESTED)
        began = time.perf_counter()
        numbers = sorted(pool.map(contest.write, adapters[1 : writers + 1]))
        seconds, refused = time.perf_counter() - began, sum(contest.lost.values())
        numbers += pool.map(contest.add, adapters[writers + 1 :])
        views = client.versions(CONTESTED)
    won = contest.won
    winners = "one winner each" if set(won.values()) == {1} else f"WINNERS {sorted(won.values())}"
    print(f"  {writers} writers, {len(won)} parents, {winners}; {refused} refused; {seconds:.1f} s", flush=True)
    published = {view.manifest.files[1].digest for view in views}
    is_whole = sorted(numbers) == list(range(2, 2 * writers + 2)) and len(published) == len(views) == 2 * writers + 1
    told = f"{contest.lost['no parent']} told to try again: {'no version is lost' if is_whole else 'VERSIONS ARE LOST'}"
    print(f"  as many without a parent, {told}")
    if not is_whole or set(won.values()) != {1}:
        raise SystemExit("the claim does not hold")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--mlflow", type=Path, help="virtual environment that has mlflow; without it MLflow is left out")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="wgbench-") as name, running_hub(Path(name) / "hub") as hub:
        if given.turns:
            run_latency(hub, given.mlflow, Path(name), given.turns)
        run_contest(hub, Path(name), given.writers)


if __name__ == "__main__":
    main()
