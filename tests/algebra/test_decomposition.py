"""Singular values are found where LAPACK's first try finds none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from wegeft.algebra import svd

DEFICIENT = np.random.default_rng(3).standard_normal((7, 3)) @ np.random.default_rng(4).standard_normal((3, 5))


def refusing(count: int) -> Callable[..., Any]:
    """Return numpy's decomposition, but for its first calls, that find no end; a real matrix for which it does has 224 rows."""
    whole, calls = np.linalg.svd, [0]

    def decompose(matrix: Any, *, full_matrices: bool) -> Any:
        calls[0] += 1
        if calls[0] <= count:
            raise np.linalg.LinAlgError("SVD did not converge")
        return whole(matrix, full_matrices=full_matrices)

    return decompose


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_finite_matrix_has_singular_values_whatever_try_finds_them(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.linalg.svd(DEFICIENT, compute_uv=False)
    monkeypatch.setattr(np.linalg, "svd", refusing(count))
    u, values, vt = svd(DEFICIENT)
    assert u.shape == (7, 5)
    np.testing.assert_allclose((u * values) @ vt, DEFICIENT, atol=1e-13)
    np.testing.assert_allclose(values, expected, atol=1e-13)
    np.testing.assert_allclose(u.T @ u, np.eye(5), atol=1e-13)
    np.testing.assert_allclose(vt @ vt.T, np.eye(5), atol=1e-13)


def test_what_no_try_finds_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.linalg, "svd", refusing(3))
    with pytest.raises(np.linalg.LinAlgError):
        svd(DEFICIENT)


def test_a_matrix_that_is_not_finite_is_refused_in_either_library() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        svd(np.full((3, 3), np.nan))
    with pytest.raises(torch.linalg.LinAlgError):
        svd(torch.full((3, 3), torch.nan))


def test_tensors_are_answered_with_tensors() -> None:
    u, values, vt = svd(torch.tensor(DEFICIENT))
    torch.testing.assert_close((u * values) @ vt, torch.tensor(DEFICIENT))
