"""``wgctl federation`` and ``wgctl site``, from the invitation to the end of the federation, against the real server."""

from __future__ import annotations

import json
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch

from cli.main import main
from tests.tiny_models import write_sums
from tests.workers.site_world import World, running_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # the server is in this process, and would log to our output
    with running_world(tmp_path_factory.mktemp("federation")) as world:
        yield world
    structlog.reset_defaults()


@dataclass
class Shell:
    """Calls ``wgctl`` in this process, as the federation's owner."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str, status: int = 0) -> str:
        self.capsys.readouterr()
        found = main(arguments)
        out, self.err = self.capsys.readouterr()
        assert found == status, f"exit {found}\n{out}\n{self.err}"
        assert "Traceback" not in out + self.err
        return out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def error(self, *arguments: str, status: int) -> dict[str, Any]:
        self(*arguments, "--json", status=status)
        found: dict[str, Any] = json.loads(self.err.strip().splitlines()[-1])
        return found


@pytest.fixture
def wgctl(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shell]:
    for name, value in {"SERVER": world.url, "TOKEN": world.token, "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(f"WEGEFT_{name}", value)
    monkeypatch.setenv("COLUMNS", "200")
    threads = torch.get_num_threads()
    yield Shell(capsys)
    torch.set_num_threads(threads)


def test_from_the_invitation_to_the_end(world: World, wgctl: Shell, tmp_path: Path) -> None:
    job_id = world.submit(rounds=2, min_sites=1)
    assert wgctl("federation", "ls", job_id) == ""
    assert f"wgctl federation invite {job_id}" in wgctl.err
    command = shlex.split(wgctl("federation", "invite", job_id, "--name", "site-a").strip())
    assert command[:2] == ["wgctl", "site"]
    home = ["--home", str(tmp_path / "site-a")]
    told = wgctl(*command[1:], *home, "--max-examples", "50", "--yes")
    assert "site-a" in told
    assert "pending" in told
    data = ["--data", str(write_sums(tmp_path / "private.jsonl", 12)), "--threads", "1"]
    checks = wgctl.json("site", "preflight", *home, *data)
    assert all(check["is_ok"] for check in checks), checks
    assert "pending" in wgctl("federation", "ls", job_id)
    assert wgctl("federation", "approve", job_id, "site-a").split() == ["site-a", "approved"]
    lines = wgctl("site", "run", *home, *data, "--once")
    assert "round 1: update accepted" in lines
    events = [json.loads(line) for line in wgctl("site", "run", *home, *data, "--json").splitlines()]
    assert {event["event"]["type"] for event in events} == {"message", "progress"}
    check_views(wgctl, job_id)


def check_views(wgctl: Shell, job_id: str) -> None:
    status = wgctl("federation", "status", job_id)
    assert "2 of 2 committed" in status
    assert "demo/sums@" in status
    assert json.loads(wgctl("federation", "status", job_id, "--watch", "--json"))["state"] == "succeeded"
    assert "succeeded, 2/2 rounds" in wgctl("federation", "status", job_id, "--watch")
    rounds = wgctl("federation", "rounds", job_id)
    assert [line.split()[0] for line in rounds.splitlines()] == ["ROUND", "2", "1"]
    assert [one["round"] for one in wgctl.json("federation", "rounds", job_id, "--limit", "1")] == [2]
    shown = wgctl("federation", "show", job_id, "--round", "2")
    assert "site-a" in shown
    assert "generator_exact" in shown
    assert "site-a" in wgctl("federation", "show", job_id)
    sites = wgctl.json("federation", "ls", job_id)
    assert [(site["site"]["name"], site["rounds_joined"]) for site in sites] == [("site-a", 2)]


def test_site_that_does_not_agree_keeps_nothing(world: World, wgctl: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = world.submit(min_sites=1)
    token = wgctl.json("federation", "invite", job_id, "--name", "a", "--approve", "--expires", "2h")["token"]
    enrol = ["site", "enrol", "--server", world.url, "--token", token, "--home", str(tmp_path / "a")]
    monkeypatch.setattr("sys.stdin", _Lines(["n\n"]))
    terms = wgctl(*enrol, status=3)
    for part in (world.url, "generator_exact", "rounds", "2 at most", str(world.model), "demo/sums"):
        assert part in terms
    assert not (tmp_path / "a").exists()
    assert wgctl.json("federation", "ls", job_id) == []
    error = wgctl.error("site", "run", "--home", str(tmp_path / "a"), "--data", "x.jsonl", status=4)
    assert "not enrolled" in error["detail"]
    monkeypatch.setattr("sys.stdin", _Lines([f"{token}\n"]))
    assert wgctl.json(*[part if part != token else "-" for part in enrol], "--yes")["site"]["state"] == "approved"
    assert (tmp_path / "a" / "policy.yaml").exists()


class _Lines:
    """Standard input that a person types."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def readline(self, _limit: int = -1) -> str:
        return self._lines.pop(0)

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_site_ends_at_once_and_says_that_nothing_is_lost(world: World, wgctl: Shell, number: signal.Signals) -> None:
    job_id = world.submit(min_sites=1)
    member = world.join(job_id, "a", approve=False)

    def last_seen() -> str:
        return str(world.api("GET", f"/jobs/{job_id}/federation")["sites"][0]["last_seen_at"])

    def interrupt() -> None:
        while last_seen() == enrolled:
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    enrolled = last_seen()
    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    wgctl("site", "run", "--home", str(member.home.folder), "--data", str(member.data), "--threads", "1", status=130)
    thread.join()
    assert "goes on with it" in wgctl.err
    assert signal.getsignal(signal.SIGTERM) is before
    with member.home.locked():
        pass


def test_revoking_ends_a_site_or_an_invitation(world: World, wgctl: Shell) -> None:
    job_id = world.submit(min_sites=1)
    member = world.join(job_id, "a", approve=False)
    assert wgctl("federation", "revoke", job_id, "a").split() == ["a", "revoked"]
    run = ["site", "run", "--home", str(member.home.folder), "--data", str(member.data), "--threads", "1"]
    assert "revoked" in wgctl.error(*run, status=6)["detail"]
    token = wgctl.json("federation", "invite", job_id, "--name", "b")["token"]
    assert "withdrawn" in wgctl("federation", "revoke", job_id, "b")
    wgctl.error("site", "enrol", "--server", world.url, "--token", token, "--yes", status=6)
    wgctl.error("federation", "revoke", job_id, "nobody", status=4)


@pytest.mark.parametrize(
    ("arguments", "status", "match"),
    [
        (["federation", "ls", "job-none"], 4, "no such job"),
        (["federation", "invite", "JOB", "--name", "no name"], 2, "--name"),
        (["federation", "invite", "JOB", "--name", "a", "--expires", "soon"], 2, "--expires"),
        (["federation", "invite", "JOB", "--name", "a", "--expires", "365d"], 2, "--expires"),
        (["federation", "approve", "JOB", "nobody"], 4, ""),
        (["federation", "show", "JOB", "--round", "9"], 4, ""),
        (["site", "enrol", "--server", "nowhere", "--token", "wgi_" + "0" * 12 + "_" + "0" * 64, "--yes"], 2, "server"),
        (["site", "enrol", "--server", "http://127.0.0.1:9", "--token", "wgt_secret", "--yes"], 2, "--token"),
        (["site", "enrol", "--server", "URL", "--token", "wgi_" + "0" * 12 + "_" + "0" * 64, "--yes"], 6, "invitation"),
        (["site", "run", "--data", "rows.jsonl"], 4, "not enrolled"),
        (["site", "preflight", "--data", "rows.jsonl"], 4, "not enrolled"),
    ],
)
def test_wrong_calls_are_told_what_would_be_right(world: World, wgctl: Shell, arguments: list[str], status: int, match: str) -> None:
    job_id = world.submit(min_sites=1) if "JOB" in arguments else ""
    given = [{"JOB": job_id, "URL": world.url}.get(argument, argument) for argument in arguments]
    error = wgctl.error(*given, status=status)
    assert match in json.dumps(error)
    assert "wgt_secret" not in json.dumps(error)


def test_preflight_that_fails_says_so(world: World, wgctl: Shell, tmp_path: Path) -> None:
    member = world.join(world.submit(min_sites=1), "a")
    (tmp_path / "rows.jsonl").write_text('{"nothing": 1}\n')
    home = ["--home", str(member.home.folder)]
    told = wgctl("site", "preflight", *home, "--data", str(tmp_path / "rows.jsonl"), "--threads", "1", status=1)
    assert "FAILED  data" in told
    assert "2 of 9 checks failed: data, one step" in wgctl.err
    error = wgctl.error("site", "preflight", *home, "--data", str(tmp_path / "rows.txt"), status=2)
    assert ".jsonl" in json.dumps(error)
