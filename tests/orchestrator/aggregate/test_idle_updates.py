"""Updates of next to nothing, which are nearest to all others of sites that differ: who chooses by distances leaves them out first."""

import numpy as np
import pytest

from orchestrator.aggregate.defences import busy_members, weigh
from wegeft.contracts.federation_rules import Defence, GeometricMedian, Krum, MultiKrum


@pytest.mark.parametrize("defence", [Krum(malicious=2), MultiKrum(malicious=2), GeometricMedian()])
def test_who_sends_next_to_nothing_has_no_weight(defence: Defence) -> None:
    updates = np.random.default_rng(5).standard_normal((11, 40))
    updates[[3, 7]] *= 1e-3
    sites, weights = [f"s-{index:02}" for index in range(11)], np.full(11, 1 / 11)
    found = weigh(defence, updates @ updates.T, sites, weights)
    assert (found[[3, 7]] == 0).all()
    assert found.sum() == pytest.approx(1)
    if isinstance(defence, MultiKrum):
        assert (found > 0).sum() == 9 - 2 - 2, "there may be two malicious ones among the nine"


@pytest.mark.parametrize(
    ("norms", "weights", "busy"),
    [
        ([1, 1, 1, 0.011, 0.009], [1] * 5, [0, 1, 2, 3]),  # a hundredth of the median
        ([1, 1, 1000, 1000], [1] * 4, [0, 1, 2, 3]),  # of the lower one
        ([1, 1000, 1000], [3, 1, 1], [0, 1, 2]),  # by weight
        ([1, 1000, 1000], [1, 1, 1], [1, 2]),
        ([0, 0, 0], [1] * 3, [0, 1, 2]),
    ],
)
def test_an_update_is_idle_below_a_hundredth_of_the_median(norms: list[float], weights: list[float], busy: list[int]) -> None:
    assert busy_members(np.diag(np.square(norms)), np.array(weights)) == busy


def test_how_many_examples_a_site_claims_makes_nobody_idle_for_krum() -> None:
    updates = np.random.default_rng(5).standard_normal((11, 40))
    updates[[3, 7]] *= 1e-3
    updates[0] *= 1000
    claimed = np.array([0.99, *[0.001] * 10])
    for defence in (Krum(malicious=2), MultiKrum(malicious=2)):
        assert (weigh(defence, updates @ updates.T, [f"s-{index:02}" for index in range(11)], claimed)[[3, 7]] == 0).all()


def test_a_site_with_most_examples_is_not_idle_for_the_geometric_median() -> None:
    updates = np.random.default_rng(5).standard_normal((4, 40))
    updates[1:] *= 1000
    found = weigh(GeometricMedian(), updates @ updates.T, list("abcd"), np.array([0.97, 0.01, 0.01, 0.01]))
    assert found[0] > 0.9


def test_krum_leaves_idle_ones_out_where_just_enough_are_left() -> None:
    updates = np.random.default_rng(5).standard_normal((9, 40))
    updates[:2] = 0
    found = weigh(Krum(malicious=2), updates @ updates.T, [f"s-{index:02}" for index in range(9)], np.full(9, 1 / 9))
    assert found[:2].sum() == 0


def test_krum_leaves_nobody_out_where_too_few_would_be_left() -> None:
    updates = np.random.default_rng(5).standard_normal((11, 40))
    updates[:5] = 0
    found = weigh(MultiKrum(malicious=2), updates @ updates.T, [f"s-{index:02}" for index in range(11)], np.full(11, 1 / 11))
    assert (found[:5] > 0).all()
    assert (found > 0).sum() == 7


def test_honest_idle_sites_do_not_make_room_for_two_that_agree() -> None:
    """Of seven, two send nothing; two attackers at one point beat three honest ones that differ, if Krum expects nobody malicious then."""
    updates = np.zeros((7, 8))
    updates[2:5, 0:3] = np.eye(3)
    updates[5:, 7] = 1.5
    found = weigh(Krum(malicious=2), updates @ updates.T, [f"s-{index}" for index in range(7)], np.full(7, 1 / 7))
    assert found[5:].sum() == 0


def test_long_updates_of_half_of_the_sites_leave_no_honest_one_out() -> None:
    updates = np.random.default_rng(5).standard_normal((4, 40))
    updates[2:] *= 1000
    found = weigh(GeometricMedian(), updates @ updates.T, list("abcd"), np.array([0.49, 0.5, 0.005, 0.005]))
    assert found[:2].sum() > 0.9
    found = weigh(GeometricMedian(), updates @ updates.T, list("abcd"), np.full(4, 0.25))
    assert (found[:2] > 0).all()


def test_a_round_in_which_nobody_moved_has_weights() -> None:
    found = weigh(GeometricMedian(), np.zeros((3, 3)), ["a", "b", "c"], np.full(3, 1 / 3))
    np.testing.assert_allclose(found, 1 / 3)
