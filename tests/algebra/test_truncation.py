"""Truncation, balance and angles, against dense singular value decompositions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.algebra.generators import SEEDS, dense, draw, generators, in_another_gauge
from wegeft import algebra
from wegeft.algebra import Generator
from wegeft.contracts.errors import InvalidTensors


@given(generators(), st.integers(0, 6))
def test_truncation_is_the_best_of_its_rank_and_tells_its_error(generator: Generator, rank: int) -> None:
    full = dense(generator)
    u, s, vt = np.linalg.svd(full)
    found = algebra.truncate(generator, rank)
    level = float(s[0])
    assert found.generator.rank <= rank
    np.testing.assert_allclose(dense(found.generator), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-8 * level)
    assert found.error == pytest.approx(np.linalg.norm(full - dense(found.generator)), abs=1e-8 * level)
    assert found.lost_energy == pytest.approx((s[rank:] ** 2).sum() / (s**2).sum(), abs=1e-12)


@given(generators(), st.integers(0, 6))
def test_compression_is_truncation_to_seven_digits_and_bounds_its_error(generator: Generator, rank: int) -> None:
    found, best = algebra.compress(generator, rank), algebra.truncate(generator, rank)
    level = algebra.norm(generator)
    missed = np.linalg.norm(dense(generator) - dense(found.generator))
    assert missed <= best.error + 1e-6 * level
    assert missed <= found.error + 1e-12 * level
    assert found.generator.rank <= rank


def test_compression_of_redundant_rows_keeps_what_they_add_up_to() -> None:
    one = draw(1, 3, 50)
    many = algebra.add(*[algebra.scale(one, factor) for factor in (1.0, -0.5, 2.0, 1e-9)])
    np.testing.assert_allclose(dense(algebra.compress(many, 3).generator), dense(many), atol=1e-6)
    assert algebra.compress(algebra.empty(one), 2).error == 0


@given(generators())
def test_balance_keeps_the_generator_and_evens_its_factors(generator: Generator) -> None:
    even = algebra.balance(generator)
    values = algebra.spectrum(generator)
    level = float(values[0])
    np.testing.assert_allclose(dense(even), dense(generator), atol=1e-12 * level)
    np.testing.assert_allclose(even.p @ even.p.T, np.diag(values), atol=1e-12 * level)
    np.testing.assert_allclose(even.q @ even.q.T, np.diag(values), atol=1e-12 * level)
    assert all(row[abs(row).argmax()] >= 0 for row in even.q)


@given(SEEDS, st.integers(1, 4))
def test_the_balanced_gauge_forgets_the_gauge_it_came_in(seed: int, rank: int) -> None:
    generator = draw(seed, rank, 9)
    values = algebra.spectrum(generator)
    if rank > 1 and float(min(values[:-1] / values[1:])) < 1.05:
        return  # directions of nearly equal values may be swapped by rounding
    even, again = algebra.balance(generator), algebra.balance(in_another_gauge(generator, seed + 1))
    np.testing.assert_allclose(again.p, even.p, atol=1e-6)
    np.testing.assert_allclose(again.q, even.q, atol=1e-6)


@given(generators(), st.integers(0, 6))
def test_a_split_adds_up_and_its_parts_do_not_overlap(generator: Generator, rank: int) -> None:
    head, tail = algebra.split(generator, rank)
    level = algebra.norm(generator)
    np.testing.assert_allclose(dense(head) + dense(tail), dense(generator), atol=1e-12 * level)
    assert algebra.dot(head, tail) == pytest.approx(0, abs=1e-12 * level**2)


@given(generators(), st.floats(0, 1))
def test_pruning_keeps_the_energy_asked_for_at_the_least_rank(generator: Generator, energy: float) -> None:
    pruned = algebra.prune(generator, energy)
    assert pruned.lost_energy <= 1 - energy + 1e-12
    if pruned.generator.rank > 0:
        assert algebra.truncate(generator, pruned.generator.rank - 1).lost_energy >= 1 - energy - 1e-12


@given(generators(), st.floats(0, 1), st.integers(0, 6))
def test_a_split_by_energy_is_the_smallest_that_keeps_it(generator: Generator, energy: float, most: int) -> None:
    head, tail = algebra.split_by_energy(generator, energy, most)
    level = algebra.norm(generator)
    np.testing.assert_allclose(dense(head) + dense(tail), dense(generator), atol=1e-12 * level)
    assert head.rank == min(most, algebra.prune(generator, energy).generator.rank)


def test_pruning_drops_what_is_only_rounding() -> None:
    twice = draw(5, 2, 20)
    redundant = algebra.add(twice, twice, algebra.scale(twice, -0.5))
    assert (redundant.rank, algebra.prune(redundant, 1.0).generator.rank) == (6, 2)


@given(SEEDS, st.integers(1, 4), st.integers(1, 4))
def test_principal_angles_are_those_of_the_row_spaces(seed: int, left_rank: int, right_rank: int) -> None:
    left, right = draw(seed, left_rank, 9), draw(seed + 1, right_rank, 9)
    bases = [np.linalg.qr(generator.q.T)[0] for generator in (left, right)]
    expected = np.arccos(np.clip(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), -1, 1))
    np.testing.assert_allclose(algebra.principal_angles(left, right), expected, atol=1e-7)


def test_a_tiny_angle_is_not_rounded_away() -> None:
    left = Generator(p=np.ones((1, 3)), q=np.array([[1.0, 0, 0]]))
    right = Generator(p=np.ones((1, 3)), q=np.array([[1.0, 1e-9, 0]]))
    assert float(algebra.principal_angles(left, right)[0]) == pytest.approx(1e-9, rel=1e-6)


def test_ranks_and_energies_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidTensors, match="negative"):
        algebra.truncate(draw(1, 2, 3), -1)
    with pytest.raises(InvalidTensors, match="between 0 and 1"):
        algebra.prune(draw(1, 2, 3), 1.5)
