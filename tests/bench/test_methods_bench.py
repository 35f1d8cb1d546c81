"""The comparison of methods: fronts, the choice of a rate, going on where it stopped, and one real run."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench._method_table import Row, beaten_by, describe_fronts, front, show_plot, show_table, write_picture
from bench.methods import COSTS, RATES, TINY, Figures, Run, known, main, perform, summarise
from wegeft.contracts.methods import Method


def row(label: str, loss: float, trainable: float) -> Row:
    costs = dict.fromkeys(COSTS, 1.0) | {"trainable": trainable}
    return Row(label=label, learning_rate=1e-3, seeds=1, loss=loss, spread=None, costs=costs)


def run(label: str = "lora", rate: float = 1e-3, seed: int = 7) -> Run:
    return Run(label=label, seed=seed, learning_rate=rate, steps=2, model=TINY, clock="cpu", threads=1)


def figures(held_out: float, train: float = 1.0) -> Figures:
    return Figures(held_out_loss=held_out, train_loss=train, trainable=10, adapter_bytes=100, step_seconds=0.1, peak_mebibytes=9.0)


ROWS = [row("lora", 0.5, 1000), row("wegeft", 0.6, 100), row("ia3", 0.9, 10), row("vera", 0.95, 50), row("dora", 0.55, 1100)]


def test_a_front_holds_what_nothing_beats_in_both() -> None:
    assert [found.label for found in front(ROWS, "trainable")] == ["ia3", "wegeft", "lora"]
    assert [found.label for found in beaten_by(ROWS[3], ROWS, "trainable")] == ["ia3"]
    assert [found.label for found in front([row("a", 1, 1), row("b", 1, 1)], "trainable")] == ["a", "b"]


def test_it_is_said_where_wegeft_is_and_who_beats_it_where_it_is_not() -> None:
    first, second, *_ = describe_fronts(ROWS, COSTS)
    assert first == "loss against trained numbers: wegeft on the front"
    assert second == "loss against bytes: WeGeFT is NOT on the front; wegeft is beaten by lora, dora"
    assert "WeGeFT was not run" in describe_fronts([ROWS[0]], COSTS)[0]


def test_the_table_and_the_plot_name_every_method() -> None:
    table, plot = show_table(ROWS, COSTS), show_plot(ROWS)
    assert "| wegeft | 0.001 | 0.600 | 100 * | 1.000 |" in table
    assert "| vera | 0.001 | 0.950 | 50.000 |" in table
    assert all(found.label in table and found.label in plot for found in ROWS)


def test_the_rate_of_the_lowest_training_loss_counts_whatever_the_held_out_loss() -> None:
    found = {run(rate=1.0): figures(0.1, train=0.9), run(rate=2.0): figures(0.3, train=0.2), run(rate=2.0, seed=8): figures(0.5, train=0.2)}
    [only] = summarise(found)
    assert (only.learning_rate, only.seeds, only.loss) == (2.0, 2, pytest.approx(0.4))
    assert only.spread == pytest.approx(0.1414, abs=1e-3)


def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.jsonl"
    done = {run(name, RATES[Method(name)]): figures(loss) for name, loss in (("lora", 0.5), ("wegeft", 0.4))}
    results.write_text("".join(json.dumps({"run": asdict(one), "figures": asdict(found)}) + "\n" for one, found in done.items()))
    assert known(results) == done
    given = ["--methods", "lora", "wegeft", "--steps", "2", "--clock", "cpu", "--threads", "1", "--results", str(results)]
    before = results.read_text()
    assert main([*given, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [found["label"] for found in answer["rows"]] == ["wegeft", "lora"]
    assert main(given) == 0
    assert "wegeft on the front" in capsys.readouterr().out
    assert results.read_text() == before


@pytest.mark.parametrize("text", ["lorra", "ia3:4", "lora:0", "lora:x"])
def test_a_method_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--methods", text])
    assert "is not a method" in capsys.readouterr().err


def test_one_run_measures_all_that_is_compared() -> None:
    found = perform(replace(run("ia3"), learning_rate=0.01))
    assert found.trainable == 4 * (2 * 128 + 2 * 64 + 2 * 256 + 256)  # q, o; k, v; gate, up write so many, and down reads so many
    assert found.adapter_bytes > 4 * found.trainable
    assert 0 < found.held_out_loss < 20
    assert found.step_seconds > 0
    assert found.peak_mebibytes > 100


def test_every_method_has_a_rate() -> None:
    assert set(RATES) == set(Method)


def test_a_picture_is_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    path = tmp_path / "methods.png"
    assert write_picture(ROWS, path) == path.exists() == (find_spec("matplotlib") is not None)
