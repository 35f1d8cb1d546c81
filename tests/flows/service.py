"""The real service as a process of its own, and the real ``wgctl`` against it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.fork_server import fork_server
from tests.tiny_models import make_model_folder, write_sums
from wegeft.client import Client

START_SECONDS = 60


@dataclass
class Service:
    """A running ``wgctl serve``."""

    process: subprocess.Popen[str]
    home: Path
    server: str
    settings: dict[str, str]

    @property
    def token(self) -> str:
        """The administrator's token."""
        return (self.home / "token").read_text().strip()

    def client(self) -> Client:
        """Return a client with the administrator's token."""
        return Client(self.server, self.token)

    def wgctl(self, *arguments: str, expected: int | None = 0, token: str | None = None) -> str:
        """Run ``wgctl`` against the service and return its standard output; its exit status must be ``expected``."""
        environment = {**clean_environment(), "WEGEFT_SERVER": self.server, "WEGEFT_TOKEN": token or self.token}
        answer = fork_server().run(arguments, env=environment, cwd=Path.cwd(), stdin="", timeout=240)
        assert expected is None or answer.returncode == expected, f"exit {answer.returncode}\n{answer.stdout}\n{answer.stderr}"
        assert "Traceback" not in answer.stderr, answer.stderr
        return answer.stdout if answer.returncode == 0 else answer.stderr

    def wgctl_json(self, *arguments: str, expected: int | None = 0) -> Any:
        """Run ``wgctl … --json`` and return what it prints, parsed."""
        return json.loads(self.wgctl(*arguments, "--json", expected=expected))

    def kill(self) -> None:
        """End the process as a power cut would: SIGKILL, nothing closed."""
        self.process.kill()
        self.process.wait(timeout=10)


def clean_environment() -> dict[str, str]:
    """Return the environment without anything that would reach another service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WEGEFT_")}


@contextmanager
def running_service(home: Path, **settings: str) -> Iterator[Service]:
    """Start ``wgctl serve`` on ``home`` with ``WEGEFT_…`` settings; stop it, and whatever it started, by pid."""
    names = {f"WEGEFT_{name.upper()}": value for name, value in {"allow_local_models": "true", **settings}.items()}
    environment = {**clean_environment(), "WEGEFT_HOME": str(home), **names}
    home.mkdir(parents=True, exist_ok=True)
    with (home / "serve.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--json"], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        yield Service(process=process, home=home, server=_await_server(process, home), settings=settings)
    finally:
        _stop(process)


def _await_server(process: subprocess.Popen[str], home: Path) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the service did not start:\n{(home / 'serve.log').read_text()}"
    return str(json.loads(line)["server"])


def _stop(process: subprocess.Popen[str]) -> None:
    family = [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=10)
    _, alive = psutil.wait_procs(family, timeout=10)
    for survivor in alive:
        survivor.kill()
    assert process.stdout is not None
    process.stdout.close()


def write_job(folder: Path, **fields: Any) -> Path:
    """Write a job file over a tiny model and one-digit sums into ``folder``, and return its path."""
    if not (folder / "model").exists():
        make_model_folder(folder / "model")
        write_sums(folder / "train.jsonl", 64)
        write_sums(folder / "heldout.jsonl", 8, start=64)
    job = {
        "name": "sums",
        "base_model": "model",
        "rank": 4,
        "datasets": [{"path": "train.jsonl"}],
        "test_datasets": [{"path": "heldout.jsonl"}],
        "sequence_len": 64,
        "max_steps": 6,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "resources": {"cpus": 1},
        "output": {"adapter": "demo/sums"},
        **fields,
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job, indent=2))  # JSON is YAML
    return path


def wait_until(is_so: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Return the first true answer of ``is_so``; fail with ``what`` when none comes in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = is_so()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not in {seconds:g} s: {what}")


def worker_pid(client: Client, job_id: str, attempt: int) -> int:
    """Return the process id that a worker wrote into the job's log at its start."""

    def find() -> int | None:
        for record in client.events(job_id).records:
            match = re.search(r"worker pid (\d+)", getattr(record.event, "text", "")) if record.attempt == attempt else None
            if match:
                return int(match.group(1))
        return None

    return int(wait_until(find, f"attempt {attempt} begins"))


def wait_for_step(client: Client, job_id: str, step: int, attempt: int = 1) -> None:
    """Return once the job's attempt has done ``step`` steps."""
    wait_until(lambda: (job := client.job(job_id)).step >= step and job.attempt == attempt, f"attempt {attempt} does step {step}", 120)


def signal_worker(pid: int, number: signal.Signals) -> None:
    """Send a signal to exactly one process."""
    os.kill(pid, number)
