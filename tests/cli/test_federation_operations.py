"""``wgctl federation rollback``, ``rotate`` and ``verify``, and ``wgctl site rotate``, against the real server."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.cli.test_federation_cli import Shell
from tests.orchestrator.federating import FakeSite
from tests.orchestrator.federation_world import World, serving
from tests.orchestrator.samples import new_sqlite


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # the server is in this process, and would log to our output
    engine = new_sqlite(tmp_path / "a.db")
    with serving(engine) as world:
        yield world
    engine.dispose()
    structlog.reset_defaults()


@pytest.fixture
def wgctl(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    for name, value in {"SERVER": world.url, "TOKEN": world.server.make_token(), "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(f"WEGEFT_{name}", value)
    monkeypatch.setenv("COLUMNS", "250")
    return Shell(capsys)


def answer_round(sites: list[FakeSite]) -> None:
    for site in sites:
        offer = site.offer()
        assert offer is not None
        site.answer(offer)


def test_going_back_is_one_command_that_says_what_it_did(world: World, wgctl: Shell) -> None:
    job_id, sites = world.begin(0, 1, rounds=2)
    rollback = ["federation", "rollback", job_id, "--reason", "site-1 sent nonsense"]
    answer_round(sites)
    assert sites[0].offer() is not None
    told = wgctl(*rollback, "--to", "0")
    assert told == "back to round 0: round 3 starts from it; round 2, try 1 was cancelled\n"
    assert wgctl.json(*rollback, "--to", "0")["number"] == 1
    answer_round(sites)
    assert sites[0].offer() is not None
    done = wgctl.json(*rollback, "--to", "local/sums@2")
    assert (done["to_round"], done["opened_round"], done["reason"]) == (3, 5, "site-1 sent nonsense")
    answer_round(sites)
    world.wait_for(job_id, "succeeded")
    lines = {line.split()[0]: line for line in wgctl("federation", "rounds", job_id).splitlines()}
    assert [part in lines[number] for number, part in (("1", "(undone)"), ("2", "(rolled_back)"), ("4", "(rolled_back)"))] == [True] * 3
    assert "undone" not in lines["3"] + lines["5"]
    shown = wgctl("federation", "show", job_id)
    assert "site-1 sent nonsense" in shown
    assert "the adminer" in shown
    assert "2 of 2 committed" in shown
    assert [one["number"] for one in wgctl.json("federation", "show", job_id)["rollbacks"]] == [1, 2]
    assert "back to round 3" in wgctl("federation", "status", job_id)


@pytest.mark.parametrize(
    ("options", "status", "match"),
    [
        (["--to", "nothing", "--reason", "x"], 2, "--to"),
        (["--to", "-1", "--reason", "x"], 2, "--to"),
        (["--to", "1", "--reason", ""], 2, "--reason"),
        (["--to", "1", "--reason", "two\nlines"], 2, "--reason"),
        (["--to", "1", "--reason", "x"], 4, "no such round"),
        (["--to", "local/none@1", "--reason", "x"], 4, "local/none"),
    ],
)
def test_going_back_where_nothing_is_names_the_option(world: World, wgctl: Shell, options: list[str], status: int, match: str) -> None:
    error = wgctl.error("federation", "rollback", world.submit(), *options, status=status)
    assert match in json.dumps(error)


def test_a_site_gets_a_new_key(world: World, wgctl: Shell, tmp_path: Path) -> None:
    job_id = world.submit()
    home = ["--home", str(tmp_path / "a")]
    wgctl("site", "enrol", "--server", world.url, "--token", world.invite(job_id, "site-0"), *home, "--yes")
    before = (tmp_path / "a" / "site.key").read_text()
    command = shlex.split(wgctl("federation", "rotate", job_id, "--name", "site-0").strip())
    assert command[:3] == ["wgctl", "site", "rotate"]
    assert "has a new key" in wgctl(*command[1:], *home)
    after = (tmp_path / "a" / "site.key").read_text()
    assert before != after
    assert not (tmp_path / "a" / "site.key.new").exists()
    assert wgctl.json("federation", "ls", job_id)[0]["site"]["public_key"] in (tmp_path / "a" / "enrolment.json").read_text()
    assert "another key" in wgctl.error(*command[1:], *home, status=6)["detail"]
    assert "--token" in json.dumps(wgctl.error("site", "rotate", "--token", "wgi_wrong", *home, status=2))
    wgctl.error("site", "rotate", "--token", "wgr_wrong", "--home", str(tmp_path / "none"), status=4)
    wgctl.error("federation", "rotate", job_id, "--name", "nobody", status=4)
    assert "--expires" in json.dumps(wgctl.error("federation", "rotate", job_id, "--name", "site-0", "--expires", "1s", status=2))


def test_verify_proves_every_round_and_finds_one_changed_byte(world: World, wgctl: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, sites = world.begin(0, 1, rounds=2)
    assert wgctl("federation", "verify", job_id) == ""
    answer_round(sites)
    answer_round(sites)
    world.wait_for(job_id, "succeeded")
    proved = wgctl.json("federation", "verify", job_id)
    assert [(one["round"], {check["is_ok"] for check in one["checks"]}) for one in proved] == [(1, {True}), (2, {True})]
    assert "computed again bit for bit" in wgctl("federation", "verify", job_id, "--round", "2")
    assert "not everything was proved" not in wgctl.err
    blobs = world.server.store._blobs  # type: ignore[attr-defined]
    record = world.server.rounds(job_id)[1].record
    assert record is not None
    digest = record.members[0].tensors
    blobs[digest] = blobs[digest][:-1] + bytes([blobs[digest][-1] ^ 1])
    told = wgctl("federation", "verify", job_id, status=7)
    assert [line.split()[1] for line in told.splitlines() if "FAILED" in line] == ["tensors", "result"]
    assert "1 of 2 rounds are not what their records say: 2" in wgctl.err
    assert "round 2, tensors: " in wgctl.err
    monkeypatch.setenv("WEGEFT_TOKEN", world.server.make_token("read"))
    seen = {check["name"]: check["is_ok"] for check in wgctl.json("federation", "verify", job_id, "--round", "1")[0]["checks"]}
    assert (seen["signatures"], seen["receipts"], seen["tensors"], seen["result"]) == (True, True, None, None)
    wgctl("federation", "verify", job_id, "--round", "1")
    assert "not everything was proved of 1 of 1 rounds: start, tensors, result, scores, version" in wgctl.err
    wgctl.error("federation", "verify", job_id, "--round", "9", status=4)
    wgctl.error("federation", "verify", "job-none", status=4)
