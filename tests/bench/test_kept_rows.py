"""Results that are kept row by row: wherever a bench was killed in the middle of a line, it goes on with the rows that are whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench import aggregate_scale
from bench._kept_rows import append_row, kept_rows
from bench._simulated_runs import complete, known
from tests.bench.test_simulated_benches import figures, run


def test_a_line_that_was_cut_anywhere_costs_itself_alone(tmp_path: Path) -> None:
    path, rows = tmp_path / "rows.jsonl", [{"case": "é", "found": n} for n in range(3)]
    assert list(kept_rows(path)) == []
    for row in rows:
        append_row(path, row)
    whole = path.read_bytes()
    assert list(kept_rows(path)) == rows
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        left = list(kept_rows(path))
        assert left == rows[: len(left)]
        append_row(path, {"case": "new"})
        assert list(kept_rows(path)) == [*left, {"case": "new"}], whole[:length]


def test_benches_go_on_behind_a_cut_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulated, scaled = tmp_path / "simulated.jsonl", tmp_path / "scaled.jsonl"
    done = {run("none | no attack"): figures(0.9), run("none | boost"): figures(0.1)}
    for one, found in done.items():
        append_row(simulated, {"run": asdict(one), "figures": asdict(found)})
    simulated.write_bytes(simulated.read_bytes()[:-9])
    first, second = done
    assert known(simulated) == {first: done[first]}
    again = complete([first, second], simulated)
    assert again[first] == done[first]
    assert known(simulated) == again
    words = ["--sites", "--widths", "8", "--rank", "2", "--results", str(scaled)]
    scaled.write_text('{"case": {"kind": "dense", "wid')
    for _ in range(2):
        aggregate_scale.main(words)
    assert [row["case"] for row in kept_rows(scaled)] == [{"kind": "dense", "width": 8, "rank": 2}]
    assert capsys.readouterr().out.count("QR+SVD") == 2
    assert json.loads(scaled.read_text().splitlines()[-1])["found"]["difference"] < 1e-9
