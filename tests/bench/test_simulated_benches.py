"""Attacks against defences, and rules against each other: what tables and conclusions follow from figures, and a real run of each."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench import _arithmetic, federation_byzantine, federation_quality
from bench._simulated_runs import Figures, Run, federation_of, known, paired
from workers.rows import PromptCompletion


def run(label: str, seed: int = 1, rate: float = 0.01) -> Run:
    section = federation_of(min_sites=2)
    return Run(label=label, seed=seed, sites=4, alpha=1.0, rounds=2, steps=1, learning_rate=rate, federation=section)


def figures(accuracy: float, *, loss: float = 1.0, accepted: int = 0, sent: int = 0, sent_bytes: int = 800) -> Figures:
    return Figures(
        accuracy=accuracy, loss=loss, sent_bytes=sent_bytes, received_bytes=1600, hostile_accepted=accepted, hostile_sent=sent, residual=0.1
    )


DONE = {
    run("none | no attack"): figures(0.9),
    run("none | absent"): figures(0.88, sent=4),
    run("none | gauge"): figures(0.9, accepted=4, sent=4),
    run("none | boost"): figures(0.1, accepted=4, sent=4),
    run("krum | no attack"): figures(0.8),
    run("krum | boost"): figures(0.79, accepted=4, sent=4),
    run("none | nan"): figures(0.5, sent=2),
    run("none | sybil"): figures(0.5, accepted=1, sent=2),
}


def test_a_defence_is_ranked_by_its_worst_attack() -> None:
    header, _, first, second = federation_byzantine.show(DONE)
    assert "| gauge | " in header
    assert first == "| krum | 80.0 % | - | -1.0 | - | -1.0 |"
    assert second == "| none | 90.0 % | -2.0 | -80.0 | +0.0 | -80.0 |"
    best, promise, alone, malformed = federation_byzantine.conclude(DONE)
    assert "krum, 79.0 %" in best
    assert promise.endswith("yes")
    assert alone == "against the honest sites alone none loses most under boost: -78.0 points"
    assert malformed == "malformed updates: 3 sent, 0 accepted; 1 by the site whose own key a Sybil used"


def test_more_than_two_points_lost_is_told() -> None:
    done = {run("none | no attack"): figures(0.9), run("none | boost"): figures(0.8)}
    assert federation_byzantine.conclude(done)[1].endswith("NO")


def test_rules_are_compared_seed_by_seed_at_their_own_rate() -> None:
    done = {
        run("generator_exact", 1): figures(0.8, loss=1.0),
        run("generator_exact", 1, 0.1): figures(0.9, loss=2.0),
        run("generator_exact", 2): figures(0.6, loss=1.0),
        run("factor_mean", 1): figures(0.75),
        run("factor_mean", 2): figures(0.53, sent_bytes=400),
    }
    exact, other = federation_quality.summarise(done)
    assert (exact.rule, exact.learning_rate, exact.seeds, exact.accuracy) == ("generator_exact", 0.01, 2, pytest.approx(70.0))
    assert (other.difference, other.error) == (pytest.approx(-6.0), pytest.approx(1.0))
    assert (exact.sent_bytes, other.sent_bytes) == (100, 75)
    assert "best or tied" in federation_quality.conclude([exact, other])
    assert "BEATEN by factor_mean" in federation_quality.conclude([exact, federation_quality.Row(**{**asdict(other), "difference": 3.0})])


def test_later_seeds_run_at_the_chosen_rate_but_the_default_at_all() -> None:
    rules = ["generator_exact", "stack, rank 64 (FLoRA)"]
    words = {"seeds": [3, 1], "rates": [0.1, 0.2], "rules": rules}
    sizes = {"sites": 4, "alpha": 1.0, "rounds": 1, "steps": 1, "task": "network", "fraction": 1.0}
    arguments = argparse.Namespace(**words, **sizes)
    first = [(run.label, run.seed, run.learning_rate) for run in federation_quality.first_runs(arguments)]
    assert first == [(rule, 1, rate) for rule in rules for rate in (0.1, 0.2)]
    rates = {"generator_exact": 0.1, "stack, rank 64 (FLoRA)": 0.2}
    other = [(run.label, run.seed, run.learning_rate) for run in federation_quality.other_runs(arguments, rates)]
    assert other == [("generator_exact", 3, 0.1), ("generator_exact", 3, 0.2), ("stack, rank 64 (FLoRA)", 3, 0.2)]


def test_questions_are_of_six_kinds_and_none_is_learnt_and_measured() -> None:
    given = _arithmetic.read_given()
    assert len(given.rows) == 568
    assert len(given.held_out) == 80
    assert not set(given.rows) & set(given.held_out)
    assert given.rows[0] == PromptCompletion("60 + 93 =", " 153")
    signs = {"2 digits +", "2 digits -", "2 digits - below zero", "3 digits +", "3 digits -", "3 digits - below zero"}
    assert set(given.values) == signs


def test_differences_are_of_seeds_that_both_have() -> None:
    assert paired({1: 3.0, 2: 5.0, 3: 9.0}, {1: 1.0, 2: 1.0}) == (3.0, 1.0)
    assert paired({1: 3.0}, {1: 1.0}) == (2.0, None)


def test_a_real_run_is_kept_and_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "byzantine.jsonl"
    words = ["--defences", "none", "--attacks", "gauge", "nan", "--seeds", "1", "--rounds", "1", "--steps", "1", "--results", str(results)]
    assert federation_byzantine.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["run"]["label"] for entry in told["runs"]] == ["none | no attack", "none | absent", "none | gauge", "none | nan"]
    assert [entry["figures"]["hostile_accepted"] for entry in told["runs"]] == [0, 0, 2, 0]
    before = results.read_bytes()
    assert federation_byzantine.main([*words, "--json"]) == 0
    assert results.read_bytes() == before
    assert len(known(results)) == 4


def test_a_real_run_of_rules_has_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--seeds", "1", "--rates", "0.01", "--rounds", "1", "--steps", "1", "--sites", "3"]
    rules = ["--rules", "generator_exact", "core (Fed-SB)", "freeze_phi (FFA)", "stack, rank 64 (FLoRA)"]
    assert federation_quality.main([*rules, *sizes, "--json", "--results", str(tmp_path / "quality.jsonl")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["rule"] for row in told["rows"]} == set(rules[1:])
    assert set(told["bounds"]) == {"local_only", "centralised", "untrained"}
    by_rule = {row["rule"]: row["sent_bytes"] for row in told["rows"]}
    assert by_rule["core (Fed-SB)"] < by_rule["freeze_phi (FFA)"] < by_rule["generator_exact"]
