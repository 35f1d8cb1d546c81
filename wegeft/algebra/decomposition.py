"""The singular value decomposition of a small matrix, which may not fail where the matrix is finite: a round would fail with it."""

from __future__ import annotations

from typing import Any

from wegeft.algebra.generator import library_of


def svd(matrix: Any) -> tuple[Any, Any, Any]:
    """Return U, the singular values, largest first, and Vᵀ; thin.

    LAPACK's divide and conquer finds no end on a few matrices whose rank is deficient, but does on others of the same singular values: the
    transpose is tried then, and the rows in the opposite order. Raises the library's ``LinAlgError`` for a matrix that is not finite.
    """
    library = library_of(matrix)
    try:
        return _thin(library, matrix)
    except library.linalg.LinAlgError:
        if not bool(library.isfinite(matrix).all()):
            raise
    try:
        u, values, vt = _thin(library, matrix.T)
    except library.linalg.LinAlgError:
        u, values, vt = _thin(library, library.flip(matrix, (0,)))
        return library.flip(u, (0,)), values, vt
    else:
        return vt.T, values, u.T


def svd_each(matrices: Any) -> tuple[Any, Any, Any]:
    """Return :func:`svd` of each of a stack of matrices, as stacks; with numpy, the same bits. Raises what it does."""
    library = library_of(matrices)
    try:
        return _thin(library, matrices)
    except library.linalg.LinAlgError:
        u, values, vt = zip(*(svd(matrix) for matrix in matrices), strict=True)
        return library.stack(u), library.stack(values), library.stack(vt)


def _thin(library: Any, matrix: Any) -> tuple[Any, Any, Any]:
    u, values, vt = library.linalg.svd(matrix, full_matrices=False)
    return u, values, vt
