"""What federations need of the algebra beyond ``tests/method/test_generator.py``: nothing, other scales, differences that do not cancel."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.algebra.generators import SEEDS, dense, draw, generators
from wegeft import algebra
from wegeft.algebra import Generator, from_rows
from wegeft.contracts.errors import InvalidAdapterConfig

WIDTH = 7


@settings(deadline=None)
@given(generators(width=WIDTH), generators(width=WIDTH), st.sampled_from([1.0, 2.0, -4.0, 1e-3]))
def test_other_scales_and_differences_are_exact(left: Generator, right: Generator, scale: float) -> None:
    a, b = dense(left), dense(right)
    for found, expected in (
        (algebra.add(left, right, left), 2 * a + b),
        (algebra.difference(left, right), a - b),
        (algebra.rescale(left, scale), a),
        (algebra.rescale_evenly(left, scale), a),
    ):
        np.testing.assert_allclose(dense(found), expected, atol=1e-10 * (1 + abs(a).max() + abs(b).max()))
    assert algebra.rescale(left, scale).scale == algebra.rescale_evenly(left, scale).scale == scale


def test_a_balanced_pair_stays_balanced_at_another_scale() -> None:
    even = algebra.rescale_evenly(algebra.canonical(draw(1, 3, 8)), -2.0)
    np.testing.assert_allclose(even.p @ even.p.T, even.q @ even.q.T, atol=1e-12)


def test_rows_are_the_factors_as_they_are_stored() -> None:
    generator = draw(1, 2, 5, 3.0)
    np.testing.assert_allclose(generator.p.T @ generator.q * 3.0, generator.scale * generator.phi @ generator.psi, rtol=1e-12)
    assert (generator.p.shape, generator.phi.shape) == ((2, 5), (5, 2))


def test_a_small_difference_of_large_generators_does_not_cancel() -> None:
    start = draw(1, 4, 60, scale=2.0)
    moved = from_rows(p=start.p, q=start.q + 1e-12 * draw(2, 4, 60).q, scale=2.0)
    exact = 2.0 * algebra.norm(from_rows(p=start.p, q=moved.q - start.q))
    assert algebra.norm(algebra.difference(moved, start)) == pytest.approx(exact, rel=1e-12)


def test_the_empty_generator_is_zero_in_every_sum() -> None:
    generator = draw(3, 2, 5)
    nothing = algebra.empty(generator)
    assert (nothing.rank, nothing.width, algebra.norm(nothing), algebra.cosine(nothing, generator)) == (0, 5, 0.0, 0.0)
    np.testing.assert_array_equal(dense(algebra.add(generator, nothing)), dense(generator))
    assert [part.rank for part in algebra.split(nothing, 3)] == [0, 0]
    assert [part.rank for part in algebra.split_by_energy(nothing, 1.0, 3)] == [0, 0]
    assert algebra.compress(nothing, 2).error == 0


@pytest.mark.parametrize("scale", [0.0, math.nan, math.inf])
def test_scales_that_lose_the_generator_are_refused(scale: float) -> None:
    for change in (algebra.rescale, algebra.rescale_evenly):
        with pytest.raises(InvalidAdapterConfig, match="scale"):
            change(draw(1, 2, 3), scale)


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_torch_tensors_give_the_same_answers(seed: int) -> None:
    left, right = draw(seed, 3, 9, 2.0), draw(seed + 1, 3, 9, -1.0)
    pair = [from_rows(p=torch.from_numpy(g.p), q=torch.from_numpy(g.q), scale=g.scale) for g in (left, right)]
    for call in (algebra.add, algebra.difference, algebra.align, algebra.rotate):
        found = call(*pair)
        assert isinstance(found.phi, torch.Tensor)
        np.testing.assert_allclose(dense(found).numpy(), dense(call(left, right)), rtol=1e-8, atol=1e-8)
    for single in (
        lambda g: algebra.split(g, 2)[0],
        lambda g: algebra.split_by_energy(g, 0.9, 2)[0],
        lambda g: algebra.compress(g, 2).generator,
    ):
        np.testing.assert_allclose(dense(single(pair[0])).numpy(), dense(single(left)), rtol=1e-6, atol=1e-6)
