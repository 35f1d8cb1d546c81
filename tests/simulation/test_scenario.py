"""Options are checked as a whole, and chance is by the seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulation.chance import answer_seconds, drops_out, hostile_sites, throw
from simulation.preparation import Given, prepare_simulation
from simulation.scenario import Scenario, check_options, make_scenario, site_names
from tests.simulation.tiny import job_of, make_simulation, options_of
from wegeft.contracts.errors import InvalidData, InvalidSetting

SPEC = job_of(Path("model"))


def problems_of(**changes: Any) -> list[str]:
    return [problem.path for problem in check_options(options_of(**changes), SPEC)]


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        ({}, []),
        ({"sites": 0}, ["--sites"]),
        ({"sites": None}, ["--sites"]),
        ({"partition": "by:kind"}, ["--sites"]),
        ({"sites": None, "partition": "by:kind"}, []),
        ({"drop": 1.0}, ["--drop"]),
        ({"drop": -0.1}, ["--drop"]),
        ({"drop": float("nan")}, ["--drop"]),
        ({"seed": -1}, ["--seed"]),
        ({"rounds": 0}, ["--rounds"]),
        ({"byzantine": "gauge"}, ["--byzantine"]),
        ({"byzantine": "0:gauge"}, ["--byzantine"]),
        ({"byzantine": "4:gauge"}, ["--byzantine"]),
        ({"byzantine": "1:gage"}, ["--byzantine"]),
        ({"answer_time": "soon"}, ["--answer-time"]),
        ({"answer_time": "1m:x"}, ["--answer-time"]),
        ({"answer_time": "1m:11"}, ["--answer-time"]),
        ({"answer_time": "1m:0.5"}, []),
        ({"sites": 0, "drop": 2.0, "partition": "x", "byzantine": "x"}, ["--sites", "--drop", "--partition", "--byzantine"]),
    ],
)
def test_every_problem_is_told_at_once(changes: dict[str, Any], paths: list[str]) -> None:
    assert problems_of(**changes) == paths


def test_a_misspelt_attack_is_guessed() -> None:
    (problem,) = check_options(options_of(byzantine="1:gage"), SPEC)
    assert problem.hint == "did you mean gauge?"


def test_a_job_without_a_federation_is_refused() -> None:
    alone = SPEC.model_copy(update={"federation": None})
    assert [problem.path for problem in check_options(options_of(), alone)] == ["JOB.yaml: federation"]


def test_fewer_sites_than_the_quorum_and_unknown_names_are_refused() -> None:
    spec = job_of(Path("model"), min_sites=5, site_ranks={"clinic": 2}, defence={"name": "fltrust", "root": "site-001"})
    with pytest.raises(InvalidSetting) as caught:
        make_scenario(options_of(), spec, 4)
    assert [(problem.path, problem.value) for problem in caught.value.problems] == [("--sites", "4"), ("JOB.yaml: federation", "clinic")]


def test_more_sites_than_rows_are_refused(model: Path, given: Given) -> None:
    with pytest.raises(InvalidData, match="need as many rows"):
        prepare_simulation(job_of(model), options_of(sites=41), given)


def test_by_field_makes_a_site_of_each_value(model: Path, given: Given) -> None:
    simulation = make_simulation(model, given, sites=None, partition="by:kind")
    assert simulation.examples == dict.fromkeys(site_names(4), 10)
    assert simulation.kinds == "4 values of kind, each a site"


def scenario_of(**changes: Any) -> Scenario:
    return make_scenario(options_of(**{"sites": 100, "byzantine": "5:nan", **changes}), SPEC, 100)


def test_the_share_that_drops_out_is_the_one_asked_for() -> None:
    scenario, sites = scenario_of(drop=0.2), site_names(100)
    missing = {(number, site) for number in range(1, 51) for site in sites if drops_out(scenario, number, 1, site)}
    assert abs(len(missing) / 5000 - 0.2) < 0.02  # three standard deviations are 0.017
    assert missing == {(number, site) for number in range(1, 51) for site in sites if drops_out(scenario, number, 1, site)}
    assert any(drops_out(scenario, 1, 1, site) != drops_out(scenario, 1, 2, site) for site in sites)
    assert not any(drops_out(scenario_of(drop=0.0), 1, 1, site) for site in sites)


def test_hostile_sites_are_the_same_in_all_rounds_and_never_the_trusted_one() -> None:
    scenario, sites = scenario_of(), site_names(100)
    hostile = hostile_sites(scenario, sites, None)
    assert len(hostile) == 5
    assert hostile == hostile_sites(scenario, list(reversed(sites)), None)
    assert hostile[0] not in hostile_sites(scenario, sites, hostile[0])
    assert hostile_sites(scenario_of(byzantine=None), sites, None) == ()


def test_answers_take_the_time_asked_for() -> None:
    scenario = scenario_of(answer_time="10m:0.5")
    times = sorted(answer_seconds(scenario, number, 1, site) for number in range(1, 21) for site in site_names(100))
    assert 500 < times[len(times) // 2] < 700
    assert times[0] < 300
    assert times[-1] > 1200
    assert answer_seconds(scenario_of(), 1, 1, "site-001") == 0


def test_a_throw_hangs_on_all_that_it_is_about() -> None:
    assert len({throw(1, "a"), throw(2, "a"), throw(1, "b"), throw(1, "a", 1)}) == 4
