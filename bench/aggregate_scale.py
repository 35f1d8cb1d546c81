"""How aggregation scales: many sites streamed in flat memory, and factors against dense matrices.

    python -m bench.aggregate_scale                      # 1,000 sites × 10 MB, takes minutes
    python -m bench.aggregate_scale --sites 50 --megabytes 1 --widths 256 512

Sites' updates are made from seeds as they are read, as if each came from the store; making them is timed apart and taken off. Times are
CPU seconds, so set OMP_NUM_THREADS=1 to read them as seconds on one core. The comparison takes the best of ``--repeats``.
Dense means what other systems do for LoRA products: form the width×width mean and take its SVD.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from orchestrator.aggregate import Contribution, FederationState, Outcome, Plan, aggregate, new_edit
from wegeft.algebra import from_rows, truncate, weighted_sum
from wegeft.contracts.federation_rules import FactorMean, FreezePhi, GeneratorExact, Rule, sent_parts

_RULES: dict[str, Rule] = {
    "freeze_phi": FreezePhi(),
    "factor_mean, not aligned": FactorMean(align=False),
    "factor_mean": FactorMean(),
    "generator_exact": GeneratorExact(),
}


def a_state(megabytes: float, rank: int, width: int) -> FederationState:
    """Return a federation whose sites send ``megabytes`` of float32 each, in generators of one width."""
    count = max(1, round(megabytes * 1e6 / (2 * rank * width * 4)))
    random = np.random.default_rng(0)
    pairs = {
        f"group{index}": from_rows(p=np.zeros((rank, width)), q=random.uniform(-1, 1, (rank, width)) / width**0.5, scale=2.0)
        for index in range(count)
    }
    return FederationState(edits={group: new_edit(pair) for group, pair in pairs.items()})


def updates(state: FederationState, seed: int, parts: Sequence[str]) -> dict[str, Any]:
    """Return what one site sends, float32."""
    random = np.random.default_rng(seed)
    moved = {}
    for group, edit in state.edits.items():
        for part, shape in (("phi", edit.pair.p.T.shape), ("psi", edit.pair.q.shape)):
            if part in parts:
                moved[f"{group}.{part}"] = np.float32(0.01) * random.standard_normal(shape, dtype=np.float32)
    return moved


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the least CPU seconds of ``repeats`` calls, which other load on the machine changes little, and the last answer."""
    best, answer = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        answer = call()
        best = min(best, time.process_time() - start)
    return best, answer


def peak_megabytes() -> float:
    """Return the most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def stream(rule_name: str, sites: int, options: argparse.Namespace) -> None:
    """Print one row: CPU seconds, GB/s and the peak of memory for so many sites under a rule."""
    rule, state = _RULES[rule_name], a_state(options.megabytes, options.rank, options.width)
    parts = sent_parts(rule, 1)
    members = [
        Contribution(site=f"s-{seed:05}", examples=1 + seed % 9, load=lambda seed=seed: updates(state, seed, parts))
        for seed in range(sites)
    ]
    making, one = timed(lambda: updates(state, 1, parts), 3)
    size = sum(array.nbytes for array in one.values())
    seconds, outcome = timed(lambda: aggregate(Plan(rule=rule, scored_sites=0), state, members), 1)
    assert isinstance(outcome, Outcome)
    net = max(seconds - sites * making, 1e-9)
    print(
        f"{rule_name:26} {sites:6} {sites * size / 1e9:8.2f} GB {seconds:8.1f} s CPU {net:8.1f} s net "
        f"{sites * size / net / 1e9:7.2f} GB/s  peak {peak_megabytes():7.0f} MB"
    )


def against_dense(width: int, rank: int, sites: int, repeats: int) -> None:
    """Print one row: the best approximation of a mean of generators, by factors and by the dense matrix."""
    random = np.random.default_rng(1)
    generators = [from_rows(p=random.standard_normal((rank, width)), q=random.standard_normal((rank, width))) for _ in range(sites)]
    weights = [1 / sites] * sites
    factored, found = timed(lambda: truncate(weighted_sum(generators, weights), rank).generator, repeats)

    def dense() -> Any:
        mean = sum(weight * (g.p.T @ g.q) for g, weight in zip(generators, weights, strict=True))
        u, values, vt = np.linalg.svd(mean, full_matrices=False)
        return (u[:, :rank] * values[:rank]) @ vt[:rank]

    slow, expected = timed(dense, 1)
    error = float(np.abs(found.p.T @ found.q - expected).max())
    print(
        f"width {width:5} rank {rank:3} sites {sites:3}: QR+SVD {factored * 1e3:9.1f} ms, dense SVD {slow * 1e3:10.1f} ms, "
        f"{slow / factored:7.1f} × faster, largest difference {error:.1e}"
    )


def main() -> None:
    """Run both parts and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--megabytes", type=float, default=10.0, help="float32 bytes of one site's factors")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048, help="of the streamed generators")
    parser.add_argument("--rules", nargs="*", default=list(_RULES), choices=list(_RULES))
    parser.add_argument("--widths", type=int, nargs="*", default=[512, 1024, 2048], help="of the comparison with dense matrices")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for rule_name in options.rules:
        for sites in sorted({max(1, options.sites // 10), options.sites}):
            stream(rule_name, sites, options)
    for width in options.widths:
        against_dense(width, options.rank, 8, options.repeats)


if __name__ == "__main__":
    main()
