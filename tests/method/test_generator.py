"""The algebra of generators against dense float64, in numpy and in torch, on whatever hypothesis finds."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method import generator as algebra
from wegeft.method.generator import Generator

unhurried = settings(deadline=None)
"""Machines that run tests are busy; time is no property of the algebra."""
LIBRARIES: list[Callable[[np.ndarray], Any]] = [np.asarray, torch.from_numpy]


@st.composite
def generators(draw: st.DrawFn, count: int, *, least_width: int = 1) -> list[Generator[Any]]:
    """Return generators of one width, of ranks up to it and beyond, some with factors of low rank, in one of the two libraries."""
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    wrap = draw(st.sampled_from(LIBRARIES))
    width = draw(st.integers(least_width, 9))
    made = []
    for _ in range(count):
        rank = draw(st.integers(1, 5))
        phi, psi = numbers.normal(size=(width, rank)), numbers.normal(size=(rank, width))
        if draw(st.booleans()):
            phi[:, -1] = phi[:, 0]
        if draw(st.integers(0, 9)) == 0:
            phi[:] = 0
        made.append(Generator(phi=wrap(phi), psi=wrap(psi), scale=draw(st.floats(0.1, 4))))
    return made


def dense(generator: Generator[Any]) -> np.ndarray:
    return generator.scale * np.asarray(generator.phi) @ np.asarray(generator.psi)


def same(found: Any, expected: Any, tolerance: float = 1e-9) -> bool:
    found, expected = np.asarray(found), np.asarray(expected)
    return bool(np.abs(found - expected).max(initial=0.0) <= tolerance * max(1.0, np.abs(expected).max(initial=0.0)))


@unhurried
@given(generators(2))
def test_inner_norm_distance_cosine(pair: list[Generator[Any]]) -> None:
    first, second = map(dense, pair)
    assert same(algebra.inner(*pair), (first * second).sum())
    assert same(algebra.norm(pair[0]), np.linalg.norm(first))
    assert same(algebra.distance(*pair), np.linalg.norm(first - second))
    size = np.linalg.norm(first) * np.linalg.norm(second)
    assert same(algebra.cosine(*pair), (first * second).sum() / size if size else 0.0)


@unhurried
@given(generators(1))
def test_distance_sees_what_gram_matrices_would_not(single: list[Generator[Any]]) -> None:
    (generator,) = single
    assume(algebra.norm(generator) > 0.1)
    near = Generator(phi=generator.phi * (1 + 1e-11), psi=generator.psi, scale=generator.scale)
    ratio = algebra.distance(generator, near) / algebra.norm(generator)
    assert 0.5e-11 < ratio < 2e-11


@unhurried
@given(generators(3), st.lists(st.floats(0, 3), min_size=3, max_size=3))
def test_sums_are_exact(three: list[Generator[Any]], weights: list[float]) -> None:
    assert same(dense(algebra.weighted_sum(three, weights)), sum(w * dense(g) for w, g in zip(weights, three, strict=True)))
    assume(sum(weights) > 1e-6)
    assert same(dense(algebra.weighted_mean(three, weights)), np.average([dense(g) for g in three], axis=0, weights=weights))


@unhurried
@given(generators(2), st.floats(-1, 2))
def test_subtract_and_interpolate(pair: list[Generator[Any]], share: float) -> None:
    first, second = map(dense, pair)
    assert same(dense(algebra.subtract(*pair)), first - second)
    assert same(dense(algebra.interpolate(*pair, share)), (1 - share) * first + share * second)


@unhurried
@given(generators(3))
def test_compose_is_the_product_of_edits_in_order(three: list[Generator[Any]]) -> None:
    identity = np.eye(three[0].width)
    edits = [identity + dense(generator) for generator in three]
    assert same(identity + dense(algebra.compose(three[0], three[1])), edits[0] @ edits[1])
    both = algebra.compose(algebra.compose(three[0], three[1]), three[2])
    assert same(identity + dense(both), edits[0] @ edits[1] @ edits[2])
    other = algebra.compose(three[0], algebra.compose(three[1], three[2]))
    assert same(dense(both), dense(other))


@unhurried
@given(generators(1))
def test_inverse(single: list[Generator[Any]]) -> None:
    (generator,) = single
    identity = np.eye(generator.width)
    edit = identity + dense(generator)
    core = np.eye(generator.rank) + generator.scale * np.asarray(generator.psi) @ np.asarray(generator.phi)
    assume(np.linalg.cond(edit) < 1e6)
    assume(np.linalg.cond(core) < 1e6)
    assert same(identity + dense(algebra.inverse(generator)), np.linalg.inv(edit), 1e-6)


@pytest.mark.parametrize("wrap", LIBRARIES)
def test_edit_that_erases_a_direction_has_no_inverse(wrap: Callable[[np.ndarray], Any]) -> None:
    direction = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    with pytest.raises(InvalidAdapterConfig, match="erases a direction"):
        algebra.inverse(Generator(phi=wrap(-direction.T * [1.0, 0.5]), psi=wrap(direction)))


@unhurried
@given(generators(1), st.integers(1, 6))
def test_truncation_is_the_best_there_is(single: list[Generator[Any]], rank: int) -> None:
    (generator,) = single
    found = algebra.truncate(generator, rank)
    u, values, v = np.linalg.svd(dense(generator))
    best = (u[:, :rank] * values[:rank]) @ v[:rank]
    tail = float(np.linalg.norm(values[rank:]))
    assert found.generator.rank == min(rank, generator.rank, generator.width)
    assert same(np.linalg.norm(dense(found.generator) - dense(generator)), tail, 1e-7)
    assert same(found.error, tail, 1e-7)
    if len(values) <= rank or values[rank - 1] - values[rank] > 1e-3:
        assert same(dense(found.generator), best, 1e-6)
    assert found.relative_error == pytest.approx(found.error / max(np.linalg.norm(values), 1e-300), abs=1e-9)


@unhurried
@given(generators(1, least_width=3), st.integers(1, 3), st.integers(0, 2**32 - 1), st.sampled_from(["output", "input", "both"]))
def test_weighted_truncation_is_the_best_in_its_norm(single: list[Generator[Any]], rank: int, seed: int, which: str) -> None:
    """Against ``G^½ M C^½`` cut densely and brought back by dense inverses, for weights and activations of full rank."""
    (generator,) = single
    width = generator.width
    numbers = np.random.default_rng(seed)
    weights, activations = numbers.normal(size=(width + 4, width)), numbers.normal(size=(width + 6, width))
    left = _root(weights) if which != "input" else np.eye(width)
    right = _root(activations) if which != "output" else np.eye(width)
    wrap = torch.from_numpy if isinstance(generator.phi, torch.Tensor) else np.asarray
    factors = {}
    if which != "input":
        factors["output_factor"] = wrap(weights)
    if which != "output":
        factors["input_factor"] = wrap(activations)
    found = algebra.truncate(generator, rank, **factors)
    u, values, v = np.linalg.svd(left @ dense(generator) @ right)
    tail = float(np.linalg.norm(values[rank:]))
    change = left @ (dense(generator) - dense(found.generator)) @ right
    assert same(np.linalg.norm(change), tail, 1e-6)
    assert same(found.error, tail, 1e-6)
    if len(values) <= rank or values[rank - 1] - values[rank] > 1e-2:
        expected = np.linalg.inv(left) @ (u[:, :rank] * values[:rank]) @ v[:rank] @ np.linalg.inv(right)
        assert same(dense(found.generator), expected, 1e-4)


def _root(factor: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(factor.T @ factor)
    return (vectors * np.sqrt(values)) @ vectors.T


@unhurried
@given(generators(1))
def test_canonical_gauge_keeps_the_product_and_forgets_the_factors(single: list[Generator[Any]]) -> None:
    (generator,) = single
    found = algebra.canonical(generator)
    assert same(dense(found), dense(generator))
    values = np.asarray(algebra.singular_values(generator))
    assert same(values, np.linalg.svd(dense(generator))[1][: len(values)] if generator.rank <= generator.width else values)
    assert same(np.linalg.norm(np.asarray(found.phi), axis=0) ** 2, values)
    distinct = len(values) == 1 or np.min(np.abs(np.diff(values))) > 1e-3
    if distinct and values[-1] > 1e-3:
        gauge = np.random.default_rng(0).normal(size=(generator.rank, generator.rank)) + 3 * np.eye(generator.rank)
        wrap = torch.from_numpy if isinstance(generator.phi, torch.Tensor) else np.asarray
        moved = Generator(
            phi=wrap(np.asarray(generator.phi) @ gauge), psi=wrap(np.linalg.inv(gauge) @ np.asarray(generator.psi)), scale=generator.scale
        )
        again = algebra.canonical(moved)
        assert same(again.phi, found.phi, 1e-5)
        assert same(again.psi, found.psi, 1e-5)


@unhurried
@given(generators(1), st.floats(0.01, 1))
def test_pruning_keeps_the_energy_with_the_least_rank(single: list[Generator[Any]], energy: float) -> None:
    (generator,) = single
    squares = np.linalg.svd(dense(generator))[1] ** 2
    found = algebra.prune(generator, energy).generator
    kept = squares[: found.rank].sum()
    assert kept >= energy * squares.sum() - 1e-9 * squares.sum()
    assert found.rank == 1 or squares[: found.rank - 1].sum() < energy * squares.sum() + 1e-9 * squares.sum()


@unhurried
@given(generators(2, least_width=5), st.sampled_from(["phi", "psi"]))
def test_principal_angles(pair: list[Generator[Any]], of: str) -> None:
    bases = [np.asarray(g.phi) if of == "phi" else np.asarray(g.psi).T for g in pair]
    assume(all(np.linalg.matrix_rank(b, tol=1e-2) == b.shape[1] for b in bases))
    found = np.asarray(algebra.principal_angles(*pair, of=of))
    projections = [b @ np.linalg.pinv(b) for b in bases]
    cosines = np.sqrt(np.clip(np.linalg.eigvalsh(projections[0] @ projections[1] @ projections[0])[::-1], 0, 1))[: len(found)]
    assert same(np.cos(found), cosines, 1e-6)
    assert len(found) == min(g.rank for g in pair)
    assert same(np.asarray(algebra.principal_angles(pair[0], pair[0], of=of)), np.zeros(pair[0].rank), 1e-10)


def test_averaging_factors_is_not_averaging_products() -> None:
    """Why the algebra exists: a harmless change of gauge makes the mean of factors meaningless, and leaves the mean of products alone."""
    numbers = np.random.default_rng(0)
    first = Generator(phi=numbers.normal(size=(8, 3)), psi=numbers.normal(size=(3, 8)))
    gauge = numbers.normal(size=(3, 3)) + 3 * np.eye(3)
    second = Generator(phi=first.phi @ gauge, psi=np.linalg.inv(gauge) @ first.psi)
    naive = (first.phi + second.phi) / 2 @ ((first.psi + second.psi) / 2)
    assert np.linalg.norm(naive - dense(first)) > 0.2 * np.linalg.norm(dense(first))
    assert same(dense(algebra.weighted_mean([first, second], [1, 1])), dense(first))


def test_adapters_are_direct_sums() -> None:
    numbers = np.random.default_rng(0)

    def random(width: int) -> Generator[Any]:
        return Generator(phi=numbers.normal(size=(width, 2)), psi=numbers.normal(size=(2, width)))

    first, second = {"q": random(5), "v": random(7)}, {"q": random(5), "o": random(6)}
    products = (dense(first["q"]) * dense(second["q"])).sum()
    sizes = [math.hypot(*(np.linalg.norm(dense(g)) for g in adapter.values())) for adapter in (first, second)]
    assert algebra.adapter_cosine(first, second) == pytest.approx(products / sizes[0] / sizes[1])
    assert algebra.adapter_cosine(first, first) == pytest.approx(1.0)
    assert algebra.adapter_cosine(first, {}) == 0.0


def test_what_does_not_go_together_is_refused() -> None:
    five, six = (Generator(phi=np.ones((width, 2)), psi=np.ones((2, width))) for width in (5, 6))
    for combine in (algebra.inner, algebra.compose, algebra.subtract, algebra.principal_angles):
        with pytest.raises(InvalidAdapterConfig, match=r"different widths cannot be combined: \[5, 6\]"):
            combine(five, six)
    with pytest.raises(InvalidAdapterConfig, match="width×rank"):
        Generator(phi=np.ones((5, 2)), psi=np.ones((3, 5)))
    with pytest.raises(InvalidAdapterConfig, match="2 generators need as many weights, not 1"):
        algebra.weighted_sum([five, five], [1.0])
    for weights in ([1.0, -0.5], [0.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(InvalidAdapterConfig, match="weights must not be negative"):
            algebra.weighted_mean([five, five], weights)
    with pytest.raises(InvalidAdapterConfig, match="rank must be at least 1"):
        algebra.truncate(five, 0)
    with pytest.raises(InvalidAdapterConfig, match="must have 5 columns"):
        algebra.truncate(five, 1, output_factor=np.ones((3, 6)))
    with pytest.raises(InvalidAdapterConfig, match="energy"):
        algebra.prune(five, 0.0)
