"""Sites under SCAFFOLD whose processes are killed with SIGKILL come to the same bytes as sites that are left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.database import writing
from orchestrator import ledger
from orchestrator.ids import make_job_id
from tests.orchestrator.federating import key_of
from tests.orchestrator.samples import at
from tests.workers.site_world import Member, World, running_world
from wegeft.contracts.job import parse_spec
from workers.site_home import SiteHome
from workers.site_journal import Entry, Journal

SITES = ("a", "bb")
SECONDS = 300.0


def begin(world: World) -> tuple[str, list[Member]]:
    """A federation under a fixed id, and its sites with fixed keys, so that nothing but deaths can differ."""
    section = {"rounds": 3, "rule": "freeze_psi", "site_optimizer": "scaffold", "wire": "int8", "deadline": "300s", "grace": "200s"}
    spec = parse_spec(world.spec({"max_steps": 12, "save_steps": 1, "learning_rate": 0.5}, **section))
    new = ledger.NewJob(id=make_job_id(at(0), bytes(10)), owner="ada", token_id="a" * 12, spec=spec)
    with writing(world.server.engine) as connection:
        job_id = ledger.add(connection, new, world.server.clock())[0].id
    for index, name in enumerate(SITES):
        home = SiteHome(world.folder / f"{job_id}-{name}")
        home.prepare()
        home.key_file.write_text(key_of(index).hex())
        home.key_file.chmod(0o600)
    with world.at_rest():
        return job_id, [world.join(job_id, name) for name in SITES]


@contextmanager
def at_work(member: Member) -> Iterator[subprocess.Popen[bytes]]:
    """A site as a process of its own; killed at the end, if it still runs."""
    folder, data = str(member.home.folder), str(member.data)
    command = [sys.executable, "-m", "cli.main", "site", "run", "--home", folder, "--data", data, "--threads", "1"]
    with (member.home.folder / "log").open("ab") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
    try:
        yield running
    finally:
        running.kill()
        running.wait(30)


def kill_when(member: Member, number: int, is_time: Callable[[Entry], bool]) -> None:
    """Let a site work until ``is_time`` of its entry of round ``number``, and kill it just then."""
    journal, end = Journal(member.home.journal_folder), time.monotonic() + SECONDS
    with at_work(member) as running:
        while not any(entry.offer.round == number and is_time(entry) for entry in journal.entries()):
            assert running.poll() is None, (member.home.folder / "log").read_text()[-4000:]
            assert time.monotonic() < end
            time.sleep(0.002)
        running.kill()
        assert running.wait(30) == -signal.SIGKILL


def finish(world: World, job_id: str, members: list[Member]) -> tuple[list[str], list[bytes]]:
    """Let all sites work to the end; return the states' digests, and every site's control variates, round by round."""
    with at_work(members[0]) as first, at_work(members[1]) as second:
        assert [running.wait(SECONDS) for running in (first, second)] == [0, 0]
    controls = [entry.control_file.read_bytes() for member in members for entry in member.journal.entries() if entry.control_file.exists()]
    return world.server.results(job_id), controls


@pytest.mark.soak
@pytest.mark.slow
def test_killing_a_site_under_scaffold_changes_no_bit(tmp_path: Path) -> None:
    for name in ("quiet", "killed"):
        (tmp_path / name).mkdir()
    with running_world(tmp_path / "quiet") as world:
        undisturbed = finish(world, *begin(world))
    with running_world(tmp_path / "killed") as world:
        job_id, members = begin(world)
        # Rounds are the other site's too, which works on alone meanwhile.
        with at_work(members[1]):
            kill_when(members[0], 1, lambda entry: any(entry.folder.glob("checkpoint-*")))
            kill_when(members[0], 1, lambda entry: entry.control_file.exists())
            kill_when(members[0], 2, lambda entry: entry.update is not None)
            kill_when(members[0], 3, lambda entry: entry.is_over)
        disturbed = finish(world, job_id, members)
        attempts = [(view.round, view.attempt, view.accepted) for view in world.server.rounds(job_id)]
    assert attempts == [(number, 1, 2) for number in (1, 2, 3)]
    assert len(undisturbed[0]) == 3
    assert disturbed == undisturbed
