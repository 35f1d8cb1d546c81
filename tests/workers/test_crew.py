"""Crews give results in the order of their orders, and on Ray the same as in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from simulation.preparation import Given
from simulation.run import Around, simulate
from tests.simulation.tiny import make_simulation, rows_of, run, write_model
from workers.crew import InlineCrew, RayCrew


def square() -> Callable[[int], int]:
    return lambda number: number * number


def test_an_inline_crew_makes_ready_once_and_counts() -> None:
    made, counted = [], list[int]()

    def prepare() -> Callable[[int], int]:
        made.append(1)
        return square()

    crew = InlineCrew(prepare)
    assert made == []
    assert crew.do([3, 1, 2], counted.append) == [9, 1, 4]
    assert crew.do([]) == []
    assert dict(crew.each([5, 6])) == {0: 25, 1: 36}
    assert (len(made), counted) == (1, [1, 2, 3])
    crew.close()


def test_an_inline_crew_lets_through_what_a_hand_raises() -> None:
    def fail(_order: int) -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        InlineCrew(lambda: fail).do([1])


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
def test_actors_come_to_the_same_digest_as_one_process(tmp_path: Path) -> None:
    model, given = write_model(tmp_path / "model"), rows_of(tmp_path)
    expected = run(make_simulation(model, given, byzantine="1:gauge", drop=0.2))
    assert _on_ray(model, given, tmp_path / "ray", 2) == expected


def _on_ray(model: Path, given: Given, folder: Path, hands: int) -> object:
    simulation = make_simulation(model, given, byzantine="1:gauge", drop=0.2)
    crew = RayCrew(simulation.workplace.prepare, hands, folder, common="start")
    try:
        return simulate(simulation, Around(crew=crew))
    finally:
        crew.close()
