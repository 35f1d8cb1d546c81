"""Splitting and compressing generators, against dense singular value decompositions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.algebra.generators import dense, draw, generators
from wegeft import algebra
from wegeft.algebra import Generator


@settings(deadline=None)
@given(generators(), st.integers(0, 6))
def test_compression_is_truncation_to_seven_digits_and_bounds_its_error(generator: Generator, rank: int) -> None:
    found, tail = algebra.compress(generator, rank), algebra.split(generator, rank)[1]
    level = algebra.norm(generator)
    missed = np.linalg.norm(dense(generator) - dense(found.generator))
    assert missed <= algebra.norm(tail) + 1e-6 * level
    assert missed <= found.error + 1e-12 * level
    assert found.generator.rank <= rank


def test_compression_of_redundant_rows_keeps_what_they_add_up_to() -> None:
    one = draw(1, 3, 50)
    many = algebra.weighted_sum([one] * 4, [1.0, -0.5, 2.0, 1e-9])
    np.testing.assert_allclose(dense(algebra.compress(many, 3).generator), dense(many), atol=1e-6)


@settings(deadline=None)
@given(generators(), st.integers(0, 6))
def test_a_split_adds_up_and_its_parts_do_not_overlap(generator: Generator, rank: int) -> None:
    head, tail = algebra.split(generator, rank)
    level = algebra.norm(generator)
    np.testing.assert_allclose(dense(head) + dense(tail), dense(generator), atol=1e-12 * level)
    assert algebra.inner(head, tail) == pytest.approx(0, abs=1e-12 * level**2)


@settings(deadline=None)
@given(generators(), st.floats(0, 1), st.integers(0, 6))
def test_a_split_by_energy_is_the_smallest_that_keeps_it(generator: Generator, energy: float, most: int) -> None:
    head, tail = algebra.split_by_energy(generator, energy, most)
    level = algebra.norm(generator)
    np.testing.assert_allclose(dense(head) + dense(tail), dense(generator), atol=1e-12 * level)
    squares = np.linalg.svd(dense(generator))[1] ** 2
    assert head.rank == most or squares[: head.rank].sum() >= (energy - 1e-9) * squares.sum()
    assert head.rank == 0 or squares[: head.rank - 1].sum() <= (energy + 1e-9) * squares.sum()


def test_what_is_only_rounding_is_in_neither_part() -> None:
    twice = draw(5, 2, 20)
    redundant = algebra.weighted_sum([twice, twice, twice], [1.0, 1.0, -0.5])
    head, tail = algebra.split_by_energy(redundant, 1.0, 6)
    assert (redundant.rank, head.rank, tail.rank) == (6, 2, 0)
