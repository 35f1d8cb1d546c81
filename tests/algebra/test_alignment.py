"""The gauge: the function never changes, honest factors stay put, and a hostile gauge changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.algebra.generators import SEEDS, dense, draw, in_another_gauge
from wegeft import algebra
from wegeft.algebra import Generator, from_rows
from wegeft.contracts.errors import InvalidAdapterConfig


def near(reference: Generator, seed: int, drift: float) -> Generator:
    step = draw(seed, reference.rank, reference.width)
    return from_rows(p=reference.p + drift * step.p, q=reference.q + drift * step.q, scale=reference.scale)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5), st.sampled_from([1.0, 2.0, -0.3]))
def test_alignment_keeps_the_function_and_takes_the_reference_scale(seed: int, rank: int, scale: float) -> None:
    reference, generator = draw(seed, rank, 9, scale), draw(seed + 1, rank, 9, 5.0)
    aligned = algebra.align(generator, reference)
    assert (aligned.scale, aligned.rank) == (scale, rank)
    np.testing.assert_allclose(dense(aligned), dense(generator), rtol=1e-7, atol=1e-7)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_a_hostile_gauge_is_undone(seed: int, rank: int) -> None:
    reference = draw(seed, rank, 12, 2.0)
    honest = near(reference, seed + 1, 0.1)
    expected = algebra.align(honest, reference)
    found = algebra.align(in_another_gauge(honest, seed + 2), reference)
    np.testing.assert_allclose(found.p, expected.p, atol=1e-6)
    np.testing.assert_allclose(found.q, expected.q, atol=1e-6)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_honest_factors_move_no_further_than_they_are_away(seed: int, rank: int) -> None:
    reference = draw(seed, rank, 40)
    for drift in (1e-2, 1e-5):
        honest = near(reference, seed + 1, drift)
        aligned = algebra.align(honest, reference)
        np.testing.assert_allclose(dense(aligned), dense(honest), atol=1e-12)
        assert np.linalg.norm(aligned.p - reference.p) < 3 * np.linalg.norm(honest.p - reference.p)
        assert np.linalg.norm(aligned.q - reference.q) < 3 * np.linalg.norm(honest.q - reference.q)


def test_the_first_round_where_p_is_zero_keeps_the_sites_own_gauge() -> None:
    reference = from_rows(p=np.zeros((3, 20)), q=draw(1, 3, 20).q)
    step = draw(2, 3, 20)
    honest = from_rows(p=1e-2 * step.p, q=reference.q + 1e-3 * step.q)
    aligned = algebra.align(in_another_gauge(honest, 3), reference)
    assert np.linalg.norm(aligned.q - reference.q) < 1e-2 * np.linalg.norm(reference.q)
    np.testing.assert_allclose(dense(aligned), dense(honest), atol=1e-12)


def test_a_generator_of_lower_rank_is_aligned_by_its_balanced_gauge() -> None:
    reference = draw(1, 3, 10)
    poor = from_rows(p=np.vstack([draw(2, 1, 10).p, np.zeros((2, 10))]), q=np.vstack([draw(2, 1, 10).q, np.zeros((2, 10))]))
    aligned = algebra.align(poor, reference)
    np.testing.assert_allclose(dense(aligned), dense(poor), atol=1e-12)
    assert np.linalg.norm(aligned.p) == pytest.approx(np.linalg.norm(aligned.q))


def test_a_site_that_changed_nothing_yet_keeps_the_reference() -> None:
    reference = from_rows(p=np.zeros((3, 20)), q=draw(1, 3, 20).q)
    aligned = algebra.align(in_another_gauge(reference, 4), reference)
    np.testing.assert_array_equal(aligned.q, reference.q)
    assert not aligned.p.any()


@settings(deadline=None)
@given(SEEDS)
def test_rotation_is_the_nearest_of_all_rotations(seed: int) -> None:
    reference, generator = draw(seed, 3, 8), draw(seed + 1, 3, 8)
    rotated = algebra.rotate(generator, reference)
    np.testing.assert_allclose(dense(rotated), dense(generator), atol=1e-12)

    def gap(p: np.ndarray, q: np.ndarray) -> float:
        return float(((p - reference.p) ** 2).sum() + ((q - reference.q) ** 2).sum())

    best = gap(rotated.p, rotated.q)
    for other in range(5):
        turn = np.linalg.qr(np.random.default_rng(other).standard_normal((3, 3)))[0]
        assert best <= gap(turn @ generator.p, turn @ generator.q) + 1e-9


def test_different_shapes_have_no_common_gauge() -> None:
    with pytest.raises(InvalidAdapterConfig, match="no common gauge"):
        algebra.align(draw(1, 2, 5), draw(1, 3, 5))


def unlike_pairs(seed: int) -> list[tuple[Generator, Generator]]:
    """Generators of every kind, of three ranks, each beside its reference."""
    first, second, flat = draw(seed, 3, 40, 2.0), draw(seed + 1, 5, 24), draw(seed + 2, 1, 9)
    fresh = from_rows(p=np.zeros((3, 40)), q=first.q, scale=2.0)
    deficient = from_rows(p=np.vstack([first.p[:1], 0 * first.p[:2]]), q=first.q, scale=2.0)
    repeated = from_rows(p=np.repeat(second.p[:1], 5, axis=0), q=second.q)
    return [
        (near(first, seed + 3, 0.1), first),
        (in_another_gauge(near(second, seed + 4, 0.3), seed + 5), second),
        (first, first),
        (fresh, first),
        (near(fresh, seed + 6, 1e-3), fresh),
        (deficient, first),
        (repeated, second),
        (draw(seed + 7, 1, 9, 3.0), flat),
        (draw(seed + 8, 3, 40, -0.5), first),
        (from_rows(p=first.p * 1e-9, q=first.q * 1e9, scale=2.0), first),
    ]


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_a_generator_is_aligned_to_the_same_bits_whatever_is_beside_it(seed: int) -> None:
    pairs = unlike_pairs(seed)
    found = algebra.align_each(pairs)
    for (generator, reference), one in zip(pairs, found, strict=True):
        alone = algebra.align(generator, reference)
        assert (one.p.tobytes(), one.q.tobytes(), one.scale) == (alone.p.tobytes(), alone.q.tobytes(), reference.scale)
        assert np.linalg.norm(dense(one) - dense(generator)) <= 1e-6 * np.linalg.norm(dense(generator))
    assert algebra.align_each([]) == []


def test_one_pair_without_a_common_gauge_is_refused_beside_others() -> None:
    with pytest.raises(InvalidAdapterConfig, match="no common gauge"):
        algebra.align_each([(draw(1, 3, 8), draw(2, 3, 8)), (draw(1, 3, 8), draw(2, 2, 8))])


def test_tensors_of_torch_are_aligned_as_arrays_are() -> None:
    pairs = unlike_pairs(3)
    found = algebra.align_each([(in_torch(generator), in_torch(reference)) for generator, reference in pairs])
    for (generator, _), one in zip(pairs, found, strict=True):
        assert isinstance(one.p, torch.Tensor)
        assert np.linalg.norm(dense(one).numpy() - dense(generator)) <= 1e-6 * np.linalg.norm(dense(generator))


def in_torch(generator: Generator) -> Generator:
    return from_rows(p=torch.tensor(generator.p), q=torch.tensor(generator.q), scale=generator.scale)
