"""Random generators for property tests: sizes and seeds from hypothesis, numbers from numpy."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from wegeft.algebra import Generator, from_rows

SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, rank: int, width: int, scale: float = 1.0) -> Generator:
    random = np.random.default_rng(seed)
    return from_rows(p=random.standard_normal((rank, width)), q=random.standard_normal((rank, width)), scale=scale)


@st.composite
def generators(make: Any, width: int | None = None, max_rank: int = 5) -> Generator:
    wide = width if width is not None else make(st.integers(1, 12))
    scale = make(st.sampled_from([1.0, 2.0, -0.5, 1e-3, 37.0]))
    return draw(make(SEEDS), make(st.integers(1, max_rank)), wide, scale)


def dense(generator: Generator) -> Any:
    """M itself, the slow way."""
    return generator.scale * (generator.p.T @ generator.q)


def in_another_gauge(generator: Generator, seed: int) -> Generator:
    """The same function by other factors: random, ill-scaled, and not orthogonal."""
    random = np.random.default_rng(seed)
    first, second = (np.linalg.qr(random.standard_normal((generator.rank, generator.rank)))[0] for _ in range(2))
    turn = first @ np.diag(10.0 ** random.uniform(-1.5, 1.5, generator.rank)) @ second
    return from_rows(p=np.linalg.solve(turn.T, generator.p), q=turn @ generator.q, scale=generator.scale)
