"""Every operation on factors, against the same on dense matrices in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.algebra.generators import SEEDS, dense, draw, generators
from wegeft import algebra
from wegeft.algebra import Generator
from wegeft.contracts.errors import InvalidTensors

WIDTH = 7


@given(st.lists(st.tuples(generators(width=WIDTH), st.floats(-3, 3)), min_size=1, max_size=6))
def test_a_weighted_sum_is_exact_for_unequal_ranks_and_scales(terms: list[tuple[Generator, float]]) -> None:
    summed = algebra.sum_weighted([generator for generator, _ in terms], [weight for _, weight in terms])
    assert summed.rank == sum(generator.rank for generator, _ in terms)
    np.testing.assert_allclose(dense(summed), sum(weight * dense(generator) for generator, weight in terms), rtol=1e-12, atol=1e-10)


@given(generators(width=WIDTH), generators(width=WIDTH))
def test_products_norms_and_cosines(left: Generator, right: Generator) -> None:
    flat = [dense(generator).ravel() for generator in (left, right)]
    lengths = [np.linalg.norm(vector) for vector in flat]
    assert algebra.dot(left, right) == pytest.approx(flat[0] @ flat[1], rel=1e-10, abs=1e-12 * lengths[0] * lengths[1])
    assert algebra.norm(left) == pytest.approx(lengths[0], rel=1e-7)
    assert algebra.cosine(left, right) == pytest.approx(flat[0] @ flat[1] / (lengths[0] * lengths[1]), abs=1e-7)
    assert algebra.gram([left, right]) == [
        [algebra.dot(left, left), algebra.dot(right, left)],
        [algebra.dot(right, left), algebra.dot(right, right)],
    ]


@given(generators(width=WIDTH), generators(width=WIDTH), st.floats(-2, 2))
def test_linear_operations(left: Generator, right: Generator, share: float) -> None:
    a, b = dense(left), dense(right)
    for found, expected in (
        (algebra.add(left, right), a + b),
        (algebra.subtract(left, right), a - b),
        (algebra.difference(left, right), a - b),
        (algebra.interpolate(left, right, share), (1 - share) * a + share * b),
        (algebra.scale(left, share), share * a),
        (algebra.rescale(left, -4.0), a),
        (algebra.rescale_evenly(left, -4.0), a),
    ):
        np.testing.assert_allclose(dense(found), expected, atol=1e-10 * (1 + abs(a).max() + abs(b).max()))


@given(generators(width=WIDTH), generators(width=WIDTH))
def test_composition_is_the_product_of_edits(left: Generator, right: Generator) -> None:
    one = np.eye(WIDTH)
    expected = (one + dense(left)) @ (one + dense(right))
    np.testing.assert_allclose(one + dense(algebra.compose(left, right)), expected, atol=1e-11 * abs(expected).max() + 1e-12)


@given(generators())
def test_the_inverse_undoes_the_edit(generator: Generator) -> None:
    if algebra.condition(generator) > 1e3:
        return
    one = np.eye(generator.width)
    edit, back = one + dense(generator), one + dense(algebra.invert(generator))
    np.testing.assert_allclose(edit @ back, one, atol=1e-9 * abs(edit).max() * abs(back).max())


def test_an_edit_that_erases_a_direction_has_no_inverse() -> None:
    direction = np.ones((1, 4)) / 2
    with pytest.raises(InvalidTensors, match="cannot be undone"):
        algebra.invert(Generator(p=-direction, q=direction))
    with pytest.raises(InvalidTensors, match="cannot be undone"):
        algebra.invert(Generator(p=-direction, q=direction, scale=1.0 + 1e-9))


def test_a_small_difference_of_large_generators_does_not_cancel() -> None:
    start = draw(1, 4, 60, scale=2.0)
    step = 1e-12
    moved = Generator(p=start.p, q=start.q + step * draw(2, 4, 60).q, scale=2.0)
    exact = 2.0 * algebra.norm(Generator(p=start.p, q=moved.q - start.q))
    assert algebra.norm(algebra.difference(moved, start)) == pytest.approx(exact, rel=1e-12)


def test_the_empty_generator_is_zero_in_every_sum() -> None:
    generator = draw(3, 2, 5)
    nothing = algebra.empty(generator)
    assert (nothing.rank, nothing.width, algebra.norm(nothing), algebra.cosine(nothing, generator)) == (0, 5, 0.0, 0.0)
    np.testing.assert_array_equal(dense(algebra.add(generator, nothing)), dense(generator))
    assert algebra.invert(nothing).rank == 0
    assert algebra.balance(nothing).rank == 0
    assert algebra.prune(nothing, 1.0).generator.rank == 0


@pytest.mark.parametrize(
    ("p", "q", "scale"),
    [((2, 3), (2, 4), 1.0), ((2, 3), (3, 3), 1.0), ((3,), (3,), 1.0), ((2, 3), (2, 3), math.nan), ((2, 3), (2, 3), math.inf)],
)
def test_factors_that_are_no_generator_are_refused(p: tuple[int, ...], q: tuple[int, ...], scale: float) -> None:
    with pytest.raises(InvalidTensors):
        Generator(p=np.zeros(p), q=np.zeros(q), scale=scale)


def test_sums_of_nothing_and_of_different_widths_are_refused() -> None:
    with pytest.raises(InvalidTensors, match="at least one"):
        algebra.sum_weighted([], [])
    with pytest.raises(InvalidTensors, match=r"different widths.*3, 4"):
        algebra.add(draw(1, 2, 3), draw(1, 2, 4))
    with pytest.raises(InvalidTensors, match="scale 0"):
        algebra.rescale(draw(1, 2, 3), 0.0)


@given(SEEDS)
def test_torch_tensors_give_the_same_answers(seed: int) -> None:
    left, right = draw(seed, 3, 9, 2.0), draw(seed + 1, 3, 9, -1.0)
    pair = [Generator(p=torch.from_numpy(g.p), q=torch.from_numpy(g.q), scale=g.scale) for g in (left, right)]
    assert algebra.dot(*pair) == pytest.approx(algebra.dot(left, right), rel=1e-12)
    calls = [algebra.add, algebra.subtract, algebra.compose, algebra.difference, algebra.align, algebra.rotate]
    for call in calls:
        found = call(*pair)
        assert isinstance(found.p, torch.Tensor)
        np.testing.assert_allclose(dense(found).numpy(), dense(call(left, right)), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(algebra.principal_angles(*pair).numpy(), algebra.principal_angles(left, right), atol=1e-9)
    for single in (algebra.balance, algebra.invert, lambda g: algebra.truncate(g, 2).generator, lambda g: algebra.prune(g, 0.9).generator):
        np.testing.assert_allclose(dense(single(pair[0])).numpy(), dense(single(left)), rtol=1e-7, atol=1e-7)
