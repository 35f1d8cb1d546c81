"""Whole simulations of tiny sites: seeded, resumed, dropped out of and attacked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from orchestrator.federation_files import read_state, state_from_adapter
from simulation.attacks import MALFORMED, Attack
from simulation.journal import Journal
from simulation.preparation import Given, Simulation
from simulation.reports import RoundReport, SimulationReport
from tests.simulation.tiny import make_simulation, run
from wegeft.contracts.errors import InvalidSetting, RoundsFailed
from wegeft.contracts.federation import FailureCode, ReasonCode, RoundState
from wegeft.contracts.tensors import read_tensors


def played(simulation: Simulation, **around: Any) -> tuple[SimulationReport, list[RoundReport]]:
    told: list[RoundReport] = []
    return run(simulation, tell=told.append, **around), told


def test_numpy_keeps_to_one_thread_while_rounds_are_played_and_has_its_threads_back(model: Path, given: Given) -> None:
    """Threads that wait for more small matrices would take the cores from the actors that train."""

    def threads_of_numpy() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    seen: list[set[int]] = []
    with threadpool_limits(2, user_api="blas"):
        run(make_simulation(model, given), tell=lambda _report: seen.append(threads_of_numpy()))
        assert threads_of_numpy() == {2}
    assert seen == [{1}, {1}]


def test_a_seed_gives_the_same_result_and_another_seed_another(model: Path, given: Given) -> None:
    first, rounds = played(make_simulation(model, given))
    again, told = played(make_simulation(model, given))
    other, _ = played(make_simulation(model, given, seed=8))
    assert (first, rounds) == (again, told)
    assert first.result != other.result
    assert first.before is not None
    assert first.after is not None
    assert first.after.loss < first.before.loss
    assert [report.record.state for report in rounds] == [RoundState.COMMITTED] * 2
    assert rounds[1].before == rounds[0].after
    assert first.sent_bytes == sum(report.sent_bytes for report in rounds) > 0


class StopHere(Exception):
    """What Ctrl-C is to a test."""


def test_stopped_after_each_try_and_resumed_equals_uninterrupted(model: Path, given: Given, tmp_path: Path) -> None:
    """With failed tries in between, and with what int8 cuts off carried from round to round."""
    changes: dict[str, Any] = {"drop": 0.5, "federation": {"wire": "int8", "max_failed_rounds": 9, "min_sites": 3}}
    whole, rounds = played(make_simulation(model, given, **changes), journal=Journal(tmp_path / "whole"))

    def stop(_report: RoundReport) -> None:
        raise StopHere

    told: list[RoundReport] = []
    for _ in rounds:
        with pytest.raises(StopHere):
            run(make_simulation(model, given, **changes), journal=Journal(tmp_path / "parts"), tell=stop)
    resumed = run(make_simulation(model, given, **changes), journal=Journal(tmp_path / "parts"), tell=told.append)
    assert told == []  # all was done before
    assert resumed == whole
    assert Journal(tmp_path / "parts").reports() == rounds


def test_more_rounds_go_on_from_those_that_are_done(model: Path, given: Given, tmp_path: Path) -> None:
    simulation = make_simulation(model, given, federation={"wire": "bf16"})
    run(replace(simulation, rounds=1), journal=Journal(tmp_path / "out"))
    grown, told = played(replace(simulation, rounds=2), journal=Journal(tmp_path / "out"))
    assert [report.record.round for report in told] == [2]
    assert grown.result == run(replace(simulation, rounds=2)).result


def test_a_folder_of_another_simulation_is_refused_with_every_difference(model: Path, given: Given, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out")
    journal.begin(make_simulation(model, given).describe())
    with pytest.raises(InvalidSetting) as caught:
        journal.begin(make_simulation(model, given, drop=0.1, federation={"min_sites": 3}).describe())
    assert [problem.path for problem in caught.value.problems] == ["federation", "scenario"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidSetting, match="holds something else"):
        Journal(tmp_path / "other").begin({})


def test_a_lost_state_is_told(model: Path, given: Given, tmp_path: Path) -> None:
    simulation = make_simulation(model, given)
    run(replace(simulation, rounds=1), journal=Journal(tmp_path / "out"))
    (state,) = (tmp_path / "out").glob("*-state.safetensors")
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    with pytest.raises(InvalidSetting, match="lost or changed"):
        run(simulation, journal=Journal(tmp_path / "out"))


def test_the_adapter_is_kept(model: Path, given: Given, tmp_path: Path) -> None:
    report = run(make_simulation(model, given), journal=Journal(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_bytes())
    weights = read_tensors((tmp_path / "out" / "adapter" / "adapter_model.safetensors").read_bytes())
    assert {array.shape[1] for name, array in weights.items() if name.endswith(".phi")} == {config["r"]}
    groups = {name.removeprefix("base_model.wegeft_generators.").rpartition(".")[0] for name in weights}
    assert state_from_adapter(weights, dict.fromkeys(groups, config["wegeft_alpha"] / config["r"])).edits.keys() == groups
    assert SimulationReport.model_validate_json((tmp_path / "out" / "summary.json").read_bytes()) == report
    (state,) = (tmp_path / "out").glob("*-state.safetensors")
    assert read_state(state.read_bytes()).rounds == 2


@pytest.mark.parametrize("attack", sorted(MALFORMED))
def test_the_gate_refuses_what_is_malformed(model: Path, given: Given, attack: Attack) -> None:
    simulation = make_simulation(model, given, byzantine=f"2:{attack}", federation={"rounds": 1})
    report, (told,) = played(simulation)
    refused = told.left_out(ReasonCode.REFUSED)
    inside = set(told.hostile_members)
    assert len(report.hostile) == 2
    assert inside == ({report.hostile[0]} if attack is Attack.SYBIL else set())  # whose key it is speaks for itself alone
    assert {one.site for one in refused} == set(report.hostile) - inside
    paths = {problem.path for one in refused for problem in one.problems}
    assert paths <= _paths(attack), paths
    assert paths


def _paths(attack: Attack) -> set[str]:
    tensors = {f"{group}.{part}" for group in ("q_proj", "down_proj") for part in ("phi", "psi")}
    match attack:
        case Attack.SCALE:
            return {"norm"}
        case Attack.WEIGHT | Attack.NEGATIVE_WEIGHT:
            return {"examples"}
        case Attack.WRONG_BASE:
            return {"base_model"}
        case Attack.WRONG_ROUND:
            return {"round"}
        case Attack.SYBIL:
            return {"signature"}
        case Attack.NAN | Attack.INFINITY:
            return tensors
        case _:
            return {"tensors"}


def test_a_defence_excludes_and_the_report_says_so(model: Path, given: Given) -> None:
    changes = {"min_sites": 7, "rounds": 1, "defence": {"name": "multi_krum", "malicious": 2, "keep": 3}, "max_update_norm": 1e6}
    report, (told,) = played(make_simulation(model, given, sites=8, byzantine="2:boost", federation=changes))
    excluded = {one.site for one in told.left_out(ReasonCode.NO_WEIGHT)}
    assert set(report.hostile) <= excluded
    assert told.hostile_members == ()


def test_who_drops_out_is_named_and_without_a_quorum_the_round_is_tried_again(model: Path, given: Given) -> None:
    simulation = make_simulation(model, given, drop=0.5, federation={"min_sites": 3, "max_failed_rounds": 20, "deadline": "10m"})
    report, told = played(simulation)
    failed = [one for one in told if one.record.state is RoundState.FAILED]
    assert report.rounds == 2
    assert report.tries == len(told) == 2 + len(failed)
    assert failed
    assert {one.record.failure for one in failed} == {FailureCode.NO_QUORUM}
    assert {one.seconds for one in failed} == {600.0}
    for one in told:
        inside = {member.site for member in one.record.members}
        absent = {exclusion.site for exclusion in one.left_out(ReasonCode.NO_ANSWER)}
        assert one.record.state is RoundState.FAILED or inside | absent == set(one.asked)


def test_rounds_that_fail_for_ever_end_the_simulation(model: Path, given: Given, tmp_path: Path) -> None:
    simulation = make_simulation(model, given, drop=0.99, federation={"min_sites": 4, "max_failed_rounds": 2})
    with pytest.raises(RoundsFailed, match="failed 3 times"):
        run(simulation, journal=Journal(tmp_path / "out"))
    with pytest.raises(RoundsFailed, match="failed 3 times"):
        run(simulation, journal=Journal(tmp_path / "out"))  # and it does not go on past that
    assert len(Journal(tmp_path / "out").reports()) == 3


def test_slow_sites_are_late_once_there_are_enough(model: Path, given: Given) -> None:
    changes = {"rounds": 1, "min_sites": 2, "grace": "1s"}
    _, (told,) = played(make_simulation(model, given, answer_time="10m:1", federation=changes))
    late = told.left_out(ReasonCode.LATE)
    assert late
    assert len(told.record.members) + len(late) == 4
    assert told.seconds > 1


def test_over_selection_asks_no_more_than_the_target(model: Path, given: Given) -> None:
    _, (told,) = played(make_simulation(model, given, federation={"rounds": 1, "min_sites": 2, "target_sites": 3}))
    assert len(told.asked) == 3
    assert len(told.left_out(ReasonCode.NOT_SELECTED)) == 0
