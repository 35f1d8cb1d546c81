"""``wgctl federation simulate`` as a person and as a script call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.main import main
from simulation.reports import RoundReport, SimulationReport
from tests.simulation.tiny import write_model
from tests.tiny_models import chat_row
from wegeft.contracts.federation import ReasonCode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job, its base model, and rows to share out and to measure on."""
    place = tmp_path_factory.mktemp("simulate")
    write_model(place / "model")
    fields = {
        "name": "tiny", "base_model": "model", "rank": 4, "target_modules": ["q_proj"], "max_steps": 1, "micro_batch_size": 4,
        "sequence_len": 64, "federation": {"rounds": 2, "min_sites": 2},
    }  # fmt: skip
    (place / "job.yaml").write_text(json.dumps(fields))
    for name, numbers in (("rows.jsonl", range(24)), ("held.jsonl", range(24, 28))):
        rows = [chat_row(f"{number}+1=", str(number + 1)) | {"kind": number % 3} for number in numbers]
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    monkeypatch.chdir(folder)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


CALL = ["federation", "simulate", "job.yaml", "--data", "rows.jsonl", "--inline"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_script_gets_a_line_for_each_round_and_one_for_the_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--sites", "5", "--partition", "dirichlet:0.5", "--partition-by", "kind", "--test-data", "held.jsonl", "--byzantine", "1:nan"]
    assert main([*CALL, *words, "--seed", "3", "--bounds", "--json", "--output", str(tmp_path / "out")]) == 0
    *rounds, last = capsys.readouterr().out.splitlines()
    reports = [RoundReport.model_validate_json(line) for line in rounds]
    whole = SimulationReport.model_validate_json(last)
    assert [report.record.round for report in reports] == [1, 2]
    assert all([one.site for one in report.left_out(ReasonCode.REFUSED)] == list(whole.hostile) for report in reports)
    assert whole.result == reports[-1].record.result
    assert [(bound.name, bound.sites) for bound in whole.bounds] == [("local_only", 5), ("centralised", 1)]

    # Once more: nothing is left to do, and the same is told of the whole.
    assert main([*CALL, *words, "--seed", "3", "--bounds", "--json", "--output", str(tmp_path / "out")]) == 0
    assert [SimulationReport.model_validate_json(line) for line in capsys.readouterr().out.splitlines()] == [whole]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_person_is_told_who_was_left_out_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--partition", "by:kind", "--byzantine", "1:wrong_base", "--rounds", "1", "--test-data", "held.jsonl"]
    assert main([*CALL, *words]) == 0
    said = capsys.readouterr().out
    assert "24, by:kind (3 values of kind, each a site)" in said
    assert "(base_model)" in said
    assert "2 of 3 in" in said
    assert "sha256:" in said


def test_all_wrong_options_are_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "absent.jsonl", "--sites", "9", "--partition", "dirichlet:x", "--drop", "2", "--byzantine", "9:nan", "--bounds"]
    assert main([*CALL, *words, "--actors", "0"]) == 2
    told = capsys.readouterr().err
    for name in ("--data", "--partition", "--drop", "--byzantine", "--bounds", "--actors"):
        assert f"  {name}: " in told, name


def test_dirichlet_wants_to_know_what_tells_rows_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CALL, "--sites", "3", "--partition", "dirichlet:1"]) == 2
    assert "--partition-by" in capsys.readouterr().err
    assert main([*CALL, "--sites", "3", "--partition", "dirichlet:1", "--partition-by", "colour"]) == 2
    assert "row 1: colour" in capsys.readouterr().err


def test_a_file_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["federation", "simulate", "job.yaml", "--data", "job.yaml", "--sites", "3", "--inline"]) == 2
    assert "--data" in capsys.readouterr().err
