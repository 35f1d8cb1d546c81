"""Timing of simulated rounds: sites that train nothing in a real simulation, of the size that the cell says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import federation_simulation as bench
from bench._our_simulation import Noise, simulation_of
from bench._round_timing import Cell, read_marks
from simulation.reports import RoundReport
from simulation.run import Around, simulate
from wegeft.contracts.federation import RoundState
from workers.crew import InlineCrew

CELL = Cell(sites=3, megabytes=0.02, rounds=1)


def test_sites_that_train_nothing_play_every_round_and_send_what_the_cell_says(tmp_path: Path) -> None:
    reports: list[RoundReport] = []
    crew = InlineCrew(Noise(tmp_path / "marks", 0.0).prepare)
    report = simulate(simulation_of(CELL, "factor_mean"), Around(crew=crew, tell=reports.append))
    assert report.rounds == 2
    assert [one.record.state for one in reports] == [RoundState.COMMITTED] * 2
    assert {len(one.record.members) for one in reports} == {3}
    assert [one.sent_bytes for one in reports] == [pytest.approx(3 * 0.02e6, rel=0.15)] * 2
    assert [(one.what, one.round) for one in read_marks(tmp_path / "marks")] == [("begun", 1)] * 3 + [("begun", 2)] * 3
    assert reports[0].record.result != reports[1].record.result


def test_the_peer_is_asked_for_by_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="--install"):
        bench.main(["--systems", "flower", "--cells", "2x0.1"])
    assert not capsys.readouterr().out


def test_an_unknown_system_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--systems", "fedml"])
    assert "invalid choice: 'fedml'" in capsys.readouterr().err
