"""Norms of products of thin matrices are those of the matrices that they stand for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wegeft.method.low_rank import Factors, balanced, difference, norm, relative_error


def factors(rows: int, columns: int, rank: int, seed: int) -> Factors:
    numbers = np.random.default_rng(seed)
    return Factors(up=numbers.standard_normal((rows, rank)), down=numbers.standard_normal((rank, columns)))


sizes = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(rows=sizes, columns=sizes, rank=sizes, other_rank=sizes, seed=st.integers(0, 2**20))
def test_norm_and_error_are_the_dense_ones(rows: int, columns: int, rank: int, other_rank: int, seed: int) -> None:
    exact, found = factors(rows, columns, rank, seed), factors(rows, columns, other_rank, seed + 1)
    dense = exact.up @ exact.down
    gap = found.up @ found.down - dense
    assert norm(exact) == pytest.approx(np.linalg.norm(dense), rel=1e-12)
    assert norm(difference(found, exact)) == pytest.approx(np.linalg.norm(gap), rel=1e-12)
    assert relative_error(found, exact) == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(dense), rel=1e-12)


def test_errors_far_below_the_square_root_of_precision_are_seen() -> None:
    exact = factors(40, 30, 4, 0)
    found = Factors(up=exact.up * (1 + 1e-12), down=exact.down)
    assert relative_error(found, exact) == pytest.approx(1e-12, rel=1e-2)


def test_zero_and_broken_changes_have_an_error_too() -> None:
    exact = factors(4, 3, 2, 0)
    zero = Factors(up=exact.up * 0, down=exact.down)
    assert relative_error(zero, zero) == 0
    assert relative_error(exact, zero) == np.inf
    assert relative_error(zero, exact) == pytest.approx(1)
    assert relative_error(Factors(up=exact.up * np.nan, down=exact.down), exact) == np.inf


def test_balancing_keeps_the_product_to_the_bit_and_the_factors_alike() -> None:
    exact = factors(40, 30, 4, 0)
    found = balanced(Factors(up=exact.up * 1e-9, down=exact.down))
    assert np.array_equal(found.up @ found.down, exact.up * 1e-9 @ exact.down)
    assert 0.25 < np.abs(found.up).max() / np.abs(found.down).max() < 4
    zero = Factors(up=exact.up * 0, down=exact.down)
    assert balanced(zero) is zero
