"""How aggregation scales: many sites streamed in flat memory, and factors against dense matrices.

    python -m bench.aggregate_scale                      # 100 and 1,000 sites × 10 MB, takes hours on one core
    python -m bench.aggregate_scale --sites 10 40 --megabytes 1 --widths 256 512

Each case runs in a process of its own, whose peak of memory it is, and is appended to ``--results`` when it ends: stopped with Ctrl-C and
started again, the bench goes on with the cases that are missing. Sites' updates are made from seeds as they are read, as if each came
from the store; making them is timed apart and taken off. Times are CPU seconds, so set OMP_NUM_THREADS=1 to read them as seconds on one
core. GB/s counts each site's bytes once, however often the rule reads them. Dense means what other systems do for LoRA products: form
the width×width mean and take its SVD.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench._kept_rows import append_row, kept_rows
from bench._memory import peak_mebibytes
from orchestrator.aggregate import Contribution, FederationState, Outcome, Plan, aggregate, new_edit
from wegeft.algebra import from_rows, truncate, weighted_sum
from wegeft.contracts.federation_rules import FactorMean, FreezePhi, GeneratorExact, GeneratorTruncate, Rule, sent_parts

_RULES: dict[str, Rule] = {
    "freeze_phi": FreezePhi(),
    "factor_mean": FactorMean(),
    "generator_truncate": GeneratorTruncate(),
    "generator_exact": GeneratorExact(),
}
_COMPARED_SITES = 8

Case = dict[str, Any]
"""What is measured: ``kind`` (``stream`` or ``dense``) and its sizes."""


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


def stream(case: Case) -> dict[str, float]:
    """Return CPU seconds, bytes, reads of each site and the peak of memory for so many sites under a rule."""
    rule, state = _RULES[case["rule"]], a_state(case["megabytes"], case["rank"], case["width"])
    parts, reads, making = sent_parts(rule, 1), [0], [0.0]

    def load(seed: int) -> dict[str, Any]:
        start = time.process_time()
        made = updates(state, seed, parts)
        making[0] += time.process_time() - start
        reads[0] += 1
        return made

    size = sum(array.nbytes for array in updates(state, 1, parts).values())
    members = [
        Contribution(site=f"s-{seed:05}", examples=1 + seed % 9, load=lambda seed=seed: load(seed))  # type: ignore[misc]
        for seed in range(case["sites"])
    ]
    seconds, outcome = timed(lambda: aggregate(Plan(rule=rule, scored_sites=0), state, members), 1)
    assert isinstance(outcome, Outcome)
    measures = outcome.measures
    return {
        "gigabytes": case["sites"] * size / 1e9,
        "cpu_seconds": seconds - making[0],
        "reads": reads[0] / case["sites"],
        "peak_mebibytes": peak_mebibytes(),
        "error_share": measures["sum_error_bound"] / max(measures["update_norm"], 1e-300),
    }


def against_dense(case: Case) -> dict[str, float]:
    """Return CPU seconds of the best approximation of a mean of generators, by factors and by the dense matrix, and how they differ."""
    width, rank = case["width"], case["rank"]
    random = np.random.default_rng(1)
    generators = [
        from_rows(p=random.standard_normal((rank, width)), q=random.standard_normal((rank, width))) for _ in range(_COMPARED_SITES)
    ]
    weights = [1 / _COMPARED_SITES] * _COMPARED_SITES
    factored, found = timed(lambda: truncate(weighted_sum(generators, weights), rank).generator, 3)

    def dense() -> Any:
        mean = sum(weight * (g.p.T @ g.q) for g, weight in zip(generators, weights, strict=True))
        u, values, vt = np.linalg.svd(mean, full_matrices=False)
        return (u[:, :rank] * values[:rank]) @ vt[:rank]

    slow, expected = timed(dense, 1)
    return {"factored_seconds": factored, "dense_seconds": slow, "difference": float(np.abs(found.p.T @ found.q - expected).max())}


def described(case: Case, found: dict[str, float]) -> str:
    """Return one row of text."""
    if case["kind"] == "dense":
        return (
            f"width {case['width']:5} rank {case['rank']:3} sites {_COMPARED_SITES}: QR+SVD {found['factored_seconds'] * 1e3:9.1f} ms, "
            f"dense SVD {found['dense_seconds'] * 1e3:10.1f} ms, {found['dense_seconds'] / found['factored_seconds']:7.1f} × faster, "
            f"largest difference {found['difference']:.1e}"
        )
    return (
        f"{case['rule']:18} width {case['width']:5} {case['sites']:6} sites {found['gigabytes']:8.2f} GB {found['cpu_seconds']:8.1f} s CPU "
        f"{found['gigabytes'] / max(found['cpu_seconds'], 1e-9):7.3f} GB/s  read {found['reads']:.0f} ×  "
        f"peak {found['peak_mebibytes']:7.0f} MiB  error {found['error_share']:.1e} of the update"
    )


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Return what is to be measured, the smallest first."""
    sizes = {"megabytes": options.megabytes, "rank": options.rank}
    dense = [{"kind": "dense", "width": width, "rank": options.rank} for width in options.widths]
    streamed = [
        {"kind": "stream", "rule": rule, "sites": sites, "width": options.width, **sizes}
        for sites in sorted(options.sites)
        for rule in options.rules
    ]
    return [*dense, *streamed]


def measure_apart(case: Case) -> dict[str, float]:
    """Return what a case measures in a process of its own."""
    command = [sys.executable, "-m", "bench.aggregate_scale", "--case", json.dumps(case)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def known(results: Path) -> dict[str, dict[str, float]]:
    """Return what was measured before, by its case as JSON."""
    return {json.dumps(row["case"], sort_keys=True): row["found"] for row in kept_rows(results)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing in ``--results``, and print all that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--megabytes", type=float, default=10.0, help="float32 bytes of one site's factors")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048, help="of the streamed generators")
    parser.add_argument("--rules", nargs="*", default=list(_RULES), choices=list(_RULES))
    parser.add_argument("--widths", type=int, nargs="*", default=[512, 1024, 2048], help="of the comparison with dense matrices")
    parser.add_argument("--results", type=Path, default=Path("bench-aggregate.jsonl"), help="where cases are appended and found again")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case is not None:
        print(json.dumps(against_dense(options.case) if options.case["kind"] == "dense" else stream(options.case)))
        return
    done = known(options.results)
    try:
        for case in cases_of(options):
            name = json.dumps(case, sort_keys=True)
            if name not in done:
                done[name] = measure_apart(case)
                append_row(options.results, {"case": case, "found": done[name]})
            print(described(case, done[name]), flush=True)
    except KeyboardInterrupt:
        print(f"stopped; what is done is in {options.results}", file=sys.stderr)


if __name__ == "__main__":
    main()
