"""Flower's rounds: its deployment, a SuperLink and a SuperNode for each site over HTTP on loopback without TLS; and its simulation on Ray.

All as it comes: state in memory, and a process for each message of the deployment. Only the installing of the application's dependencies
at run time and telemetry are off. A simulated site has one core in place of two, so that as many train at once as there are cores.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from bench._round_timing import (
    GROUPS,
    LONG_SECONDS,
    RANK,
    SHORT_SECONDS,
    Cell,
    Timing,
    end_all,
    is_memory_short,
    read_marks,
    timing_of,
    wait_for,
    watching,
)

_CONNECTION = '[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
_SIMULATED = "options.num-supernodes = {sites}\noptions.backend.client-resources.num-cpus = 1\n"


def run_flower(cell: Cell, folder: Path, venv: Path) -> Timing:
    """Time rounds of FedAvg, deployed."""
    return _run(cell, folder, venv, is_simulated=False)


def simulate_flower(cell: Cell, folder: Path, venv: Path) -> Timing:
    """Time rounds of FedAvg, simulated."""
    return _run(cell, folder, venv, is_simulated=True)


def _run(cell: Cell, folder: Path, venv: Path, *, is_simulated: bool) -> Timing:
    environment = _environment(folder, venv)
    shutil.copytree(Path(__file__).parent / "_flower_app", folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    ports = _free_ports(1 if is_simulated else cell.sites + 1)
    said = _CONNECTION.format(port=ports[0]) + (_SIMULATED.format(sites=cell.sites) if is_simulated else "")
    (folder / "flower" / "config.toml").write_text(said)
    started: list[int] = []
    try:
        link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(ports[0])]
        link += ["--simulation"] if is_simulated else []
        started.append(_start(link, folder / "link.log", environment))
        _wait_for_port(ports[0], cell.limit_seconds)
        with watching(lambda: list(started), SHORT_SECONDS if is_simulated else LONG_SECONDS) as samples:
            for port in ports[1:]:
                node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{ports[0]}", "--port", str(port)]
                started.append(_start(node, folder / "nodes.log", environment))
            _submit(cell, folder, environment)
            last = cell.rounds + 2
            marks = folder / "marks"
            wait_for(
                lambda: is_memory_short() or any(one.what == "round" and one.round == last for one in read_marks(marks)), cell.limit_seconds
            )
            if is_memory_short():
                raise RuntimeError("its processes, one for each message, have filled the memory")
        return timing_of(read_marks(folder / "marks"), samples)
    finally:
        end_all(started)


def _environment(folder: Path, venv: Path) -> dict[str, str]:
    (folder / "flower").mkdir(parents=True)
    path = f"{venv.absolute() / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    own = {"PATH": path, "FLWR_HOME": str(folder / "flower"), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    # A Ray of its own, never one that this machine has already.
    own |= {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder / "ray"), "RAY_USAGE_STATS_ENABLED": "0"}
    (folder / "ray").mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | own


def _start(command: list[str], log: Path, environment: Mapping[str, str]) -> int:
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=dict(environment)).pid


def _submit(cell: Cell, folder: Path, environment: Mapping[str, str]) -> None:
    values = {
        "rounds": cell.rounds + 1, "sites": cell.sites, "width": cell.width, "rank": RANK, "groups": GROUPS,
        "work": float(cell.work_seconds), "marks": f"'{folder / 'marks'}'",
    }  # fmt: skip
    said = " ".join(f"{name}={value}" for name, value in values.items())
    command = ["flwr", "run", str(folder / "app"), "bench", "--run-config", said]
    subprocess.run(command, env=dict(environment), check=True, stdout=subprocess.DEVNULL, timeout=cell.limit_seconds)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def _wait_for_port(port: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the SuperLink did not start")
