"""The algebra of generators: products ``M = s·φψ`` compared, added, cut, aligned and inverted without ever forming width×width.

Every function takes numpy arrays or torch tensors and answers in kind, in their dtype; torch is not imported for it. No function changes
its arguments, and all may be called from any thread.
"""

from wegeft.algebra.alignment import align, align_each, rotate
from wegeft.algebra.decomposition import svd
from wegeft.algebra.generator import (
    Array,
    Generator,
    adapter_cosine,
    add,
    compose,
    cosine,
    difference,
    empty,
    from_rows,
    inner,
    interpolate,
    inverse,
    norm,
    rescale,
    rescale_evenly,
    subtract,
    weighted_mean,
    weighted_sum,
)
from wegeft.algebra.truncation import (
    Truncation,
    canonical,
    compress,
    distance,
    principal_angles,
    prune,
    singular_values,
    split,
    split_by_energy,
    truncate,
)

__all__ = [
    "Array",
    "Generator",
    "Truncation",
    "adapter_cosine",
    "add",
    "align",
    "align_each",
    "canonical",
    "compose",
    "compress",
    "cosine",
    "difference",
    "distance",
    "empty",
    "from_rows",
    "inner",
    "interpolate",
    "inverse",
    "norm",
    "principal_angles",
    "prune",
    "rescale",
    "rescale_evenly",
    "rotate",
    "singular_values",
    "split",
    "split_by_energy",
    "subtract",
    "svd",
    "truncate",
    "weighted_mean",
    "weighted_sum",
]
