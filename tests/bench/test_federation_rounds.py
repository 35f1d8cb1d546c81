"""Timing of rounds: what marks and samples say, and a site that trains nothing in a real federation."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import federation_rounds as bench
from bench._noop_site import take_part
from bench._round_timing import Mark, Timing, cpu_seconds, mark, read_marks, timing_of
from infra.database import writing
from orchestrator.ledger import sites
from tests.orchestrator.federating import SERVER_KEY, Server, key_of, now
from tests.orchestrator.samples import at, new_sqlite
from tests.orchestrator.serving import listening
from wegeft.client.site import SiteClient, SiteCredentials
from wegeft.contracts.signatures import public_key_of


def marks(*began: float) -> list[Mark]:
    return [Mark(what="round", round=number, at=at) for number, at in enumerate(began, start=1)]


def test_a_round_lasts_until_the_next_begins_and_the_first_is_left_out() -> None:
    heard = [Mark(what="heard", round=number, at=at) for number, at in ((1, 50.0), (2, 110.5), (3, 113.25), (4, 117.0))]
    timing = timing_of([*heard, *reversed(marks(10, 110, 113, 117))], [(0, 0.0), (110, 5.0), (117, 12.0), (200, 50.0)])
    assert timing.periods == (3, 4)
    assert timing.seconds == 3.5
    assert timing.cpu_seconds == pytest.approx(3.5)
    assert sorted(timing.heard) == [0.25, 0.5]
    assert timing.begun == ()


def test_a_process_that_ends_unnoticed_takes_nothing_back() -> None:
    assert timing_of(marks(0, 10, 20), [(10, 5.0), (15, 9.0), (20, 2.0)]).cpu_seconds == pytest.approx(4)


def test_a_run_that_did_not_get_beyond_its_first_round_gives_no_timing() -> None:
    with pytest.raises(RuntimeError, match="no round"):
        timing_of(marks(1, 2), [(0, 0.0), (3, 1.0)])


def test_ended_processes_count() -> None:
    before = cpu_seconds([os.getpid()])
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert cpu_seconds([os.getpid()]) - before >= 0.28
    assert cpu_seconds([2**22 + 1]) == 0


def test_payload_takes_what_the_cell_says() -> None:
    options = argparse.Namespace(rounds=3, work=0.0, limit=10.0)
    cell = bench.parse_cell("8x1", options)
    assert (cell.sites, cell.name) == (8, "8 × 1 MB")
    assert 7 * 2 * 16 * cell.width * 4 == pytest.approx(1e6, rel=0.01)


def test_peers_are_asked_for_by_their_folder() -> None:
    with pytest.raises(SystemExit, match="--install"):
        bench.runner("flower", None)


def test_ratios_are_paired_within_a_turn(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*began: float) -> bench.Timing:
        return timing_of(marks(*began), [(0, 0.0), (100, 100.0)])

    found = {"2 × 1 MB": {"ours": [run(0, 1, 2), run(0, 1, 5)], "flower": [run(0, 1, 11), run(0, 1, 25)]}}
    bench.print_table(found)
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[-2] == "8.0"
    assert row[2:4] == ["17.00", "10.00-24.00"]


def test_site_that_trains_nothing_answers_every_round(tmp_path: Path) -> None:
    server = Server(new_sqlite(tmp_path / "a.db"))
    job_id = server.add(rounds=2, min_sites=1)
    with writing(server.engine) as connection:
        sites.invite(connection, job_id, "site", "t", (at(0), at(10**9)), is_approval=True)
        sites.enrol(connection, "t", ("s-0", public_key_of(key_of(0)), 100), at(1))
    who = SiteCredentials(job_id=job_id, pseudonym="s-0", server_key=public_key_of(SERVER_KEY), private_key=key_of(0))
    thread = server.thread()
    with listening(server.app()) as url, SiteClient(url, who, now) as client:
        thread.start()
        take_part(client, tmp_path, lambda what, number: mark(tmp_path / "marks", what, number), 0.0)
        thread.close()
    assert [(one.what, one.round) for one in read_marks(tmp_path / "marks")] == [("heard", 1), ("begun", 1), ("heard", 2), ("begun", 2)]
    assert [view.accepted for view in server.rounds(job_id)] == [1, 1]
    assert len(set(server.results(job_id))) == 2
    server.engine.dispose()


def test_sizes_of_cells_are_those_of_the_issue() -> None:
    cells = [bench.parse_cell(text, argparse.Namespace(rounds=1, work=0.0, limit=1.0)) for text in bench.CELLS]
    assert {(cell.sites, cell.megabytes) for cell in cells} == {(sites, size) for sites in (2, 8, 32) for size in (0.1, 1, 16)}


def test_without_peers_ours_alone_is_timed_unless_systems_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def choose(system: str, _peers: Path | None) -> bench.Run:
        asked.append(system)
        return lambda cell, _folder: Timing(periods=(1.0,) * cell.rounds, cpu_seconds=2.0)

    for given, expected in (
        ([], ["ours", "ours, generator_exact"]),
        (["--systems", "flower"], ["flower"]),
        (["--peers", "x"], bench.SYSTEMS),
    ):
        asked.clear()
        options = bench.parser_of(None, ["2x1"], bench.SYSTEMS, rounds=3).parse_args(["--repeats", "1", *given])
        bench.time_all(options, bench.SYSTEMS, "peers of one version", choose)
        assert asked == list(expected)
    told = capsys.readouterr()
    assert "peers of one version" in told.out
    assert "2 × 1 MB: flower: 1.00 s a round, 2.00 s CPU, 3 rounds" in told.err
