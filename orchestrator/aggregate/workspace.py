"""Memory that is used again: to be given pages anew takes as long as to fill them."""

from __future__ import annotations

import math
import threading

import numpy as np

from orchestrator.aggregate.state import Array


class Workspace:
    """Arrays by name, for work on one generator after the other; each thread has its own, until the workspace goes."""

    def __init__(self) -> None:
        self._kept = threading.local()

    def take(self, name: str, *shape: int) -> Array:
        """Return an array of ``shape`` with any numbers in it; it is valid until the same thread takes ``name`` again."""
        size = math.prod(shape)
        known: Array | None = getattr(self._kept, name, None)
        if known is None or known.size < size:
            known = np.empty(size)
            setattr(self._kept, name, known)
        return known[:size].reshape(shape)
