"""LoRA's edits ``ΔW = s·BA`` as products of two factors, so that what is computed of generators can be computed of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from wegeft.algebra import Generator

_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight\Z")


def products_of(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Generator[Any]]:
    """Return a LoRA adapter's edits by module, in float64, from its tensors and its ``adapter_config.json``.

    Each is a generator with φ = B and ψ = A; the shorter of the two is filled up with zeros, which changes no norm, angle or cosine.
    """
    factors: dict[str, dict[str, Any]] = {}
    for name, array in tensors.items():
        if found := _FACTOR.match(name):
            factors.setdefault(found["module"], {})[found["factor"]] = array.astype("float64")
    return {module: _product(pair["B"], pair["A"], _scale(module, pair["A"].shape[0], config)) for module, pair in sorted(factors.items())}


def _product(b: Any, a: Any, scale: float) -> Generator[Any]:
    width = max(b.shape[0], a.shape[1])
    phi = np.pad(b, ((0, width - b.shape[0]), (0, 0)))
    return Generator(phi=phi, psi=np.pad(a, ((0, 0), (0, width - a.shape[1]))), scale=scale)


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """Return what PEFT multiplies a module's product by."""
    patterns = (config.get("alpha_pattern") or {}).items()
    named = (alpha for pattern, alpha in patterns if module == pattern or module.endswith(f".{pattern}"))
    alpha = float(next(named, config["lora_alpha"]))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
