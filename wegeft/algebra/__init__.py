"""The algebra of generators ``M = s·PᵀQ``, always on the factors and never on a width×width matrix.

Works alike on numpy arrays and on torch tensors, without importing torch. Arithmetic is done in the dtype of the factors: whoever needs
float64 passes float64. No function changes its arguments; all are safe to call from any thread.
"""

from wegeft.algebra.alignment import align, rotate
from wegeft.algebra.generator import (
    Generator,
    add,
    compose,
    cosine,
    difference,
    dot,
    empty,
    gram,
    interpolate,
    norm,
    rescale,
    rescale_evenly,
    scale,
    subtract,
    sum_weighted,
)
from wegeft.algebra.inversion import CONDITION_LIMIT, condition, invert
from wegeft.algebra.truncation import (
    Truncation,
    balance,
    compress,
    principal_angles,
    prune,
    rank_for_energy,
    spectrum,
    split,
    split_by_energy,
    truncate,
)

__all__ = [
    "CONDITION_LIMIT",
    "Generator",
    "Truncation",
    "add",
    "align",
    "balance",
    "compose",
    "compress",
    "condition",
    "cosine",
    "difference",
    "dot",
    "empty",
    "gram",
    "interpolate",
    "invert",
    "norm",
    "principal_angles",
    "prune",
    "rank_for_energy",
    "rescale",
    "rescale_evenly",
    "rotate",
    "scale",
    "spectrum",
    "split",
    "split_by_energy",
    "subtract",
    "sum_weighted",
    "truncate",
]
