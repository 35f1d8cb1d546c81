"""The real ``wgctl``, as a person calls it: a process of its own, with a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.home import Home
from tests.fork_server import fork_server

COMMAND = [str(Path(sys.executable).with_name("wgctl"))]


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as one JSON document."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error that it wrote with ``--json``."""
        return json.loads(self.err.strip().splitlines()[-1])


@dataclass(frozen=True)
class Wgctl:
    """Calls ``wgctl`` with one home."""

    home: Path
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, status: int | None = 0, stdin: str = "", timeout: float = 120) -> Answer:
        done = fork_server().run(arguments, stdin=stdin, timeout=timeout, env=self.env, cwd=self.folder)
        answer = Answer(done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in answer.out + answer.err, answer.err
        if status is not None:
            assert answer.status == status, f"{arguments}: exit status {answer.status}\n{answer.out}\n{answer.err}"
        return answer

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start the installed program itself, and do not wait for it."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*COMMAND, *arguments], text=True, env=self.env, cwd=self.folder, **(pipes | options))

    @property
    def env(self) -> dict[str, str]:
        """The whole environment of a command."""
        ours = {"WEGEFT_HOME": str(self.home), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        return {**os.environ, **ours, **self.environment}

    def record(self) -> dict[str, Any]:
        """Return what the running service wrote of itself."""
        found: dict[str, Any] = json.loads((self.home / "service.json").read_text())
        return found

    def kill_service(self) -> None:
        """Kill the service as a crash would, and leave everything else as it is."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.record()["pid"])
            process.kill()
            process.wait(10)


@pytest.fixture
def make_wgctl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Wgctl]]:
    """Make callers of ``wgctl``, each with a home of its own; whatever runs in one is ended at the end."""
    made: list[Wgctl] = []

    def make(**environment: str) -> Wgctl:
        wgctl = Wgctl(tmp_path_factory.mktemp("wgctl-home"), tmp_path_factory.mktemp("work"), environment)
        made.append(wgctl)
        return wgctl

    yield make
    for wgctl in made:
        if Home(wgctl.home).is_held():
            wgctl("down", status=None)


@pytest.fixture
def wgctl(make_wgctl: Callable[..., Wgctl]) -> Wgctl:
    """Call ``wgctl`` with a home of its own."""
    return make_wgctl()
