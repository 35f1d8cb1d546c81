"""Rules side by side on a federated task: accuracy and bytes, against all rows in one place and each site alone.

    python -m bench.federation_quality                                    # minutes on two cores; goes on where it stopped
    python -m bench.federation_quality --rules generator_exact factor_mean --seeds 1 --rounds 2

Twenty sites, each with its own Dirichlet(0.1) share of the labels, train a network that reads upright digits on digits turned by 90
degrees: a small one by a loop of the bench's own, or with ``--task vit`` a Vision Transformer by the workers'. With ``--task language``
SmolLM2-135M learns sums and differences, and each site has its share of the six kinds of questions. Everything else is the code of real
rounds. Rules are compared seed by seed: the same shares, the same order of rows, the same first factors where the rule lets
them. Each rule runs at several learning rates on the first seed, and goes on with the one of the lowest held-out loss there; the default
runs at all on every seed, for the bounds. Bytes are the files of updates and of starts of one site in one round, without HTTP.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench._simulated_runs import TASKS, Figures, Run, complete, federation_of, paired, write_bars

RULES: dict[str, dict[str, object]] = {
    "generator_exact": {"name": "generator_exact"},
    "generator_truncate": {"name": "generator_truncate"},
    "factor_mean": {"name": "factor_mean"},
    "factor_mean, not aligned (FedIT)": {"name": "factor_mean", "align": False},
    "stack, rank 64 (FLoRA)": {"name": "stack", "max_rank": 64},
    "alternate (RoLoRA)": {"name": "alternate"},
    "freeze_phi (FFA)": {"name": "freeze_phi"},
    "freeze_psi": {"name": "freeze_psi"},
    "core (Fed-SB)": {"name": "core"},
}
DEFAULT = "generator_exact"
"""The rule of a job that names none: what the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A rule's figures."""

    rule: str
    learning_rate: float
    seeds: int
    accuracy: float
    """Per cent; mean over the seeds."""
    difference: float
    """Points to the default rule, paired."""
    error: float | None
    """Its standard error; None for one seed."""
    loss: float
    """Held out; mean over the seeds."""
    sent_bytes: float
    """By one site in one round."""
    received_bytes: float


def first_runs(arguments: argparse.Namespace) -> Iterator[Run]:
    """Yield the runs of the first seed, by which each rule gets its learning rate."""
    for rule in arguments.rules:
        for rate in arguments.rates:
            yield _run(rule, rate, min(arguments.seeds), arguments)


def other_runs(arguments: argparse.Namespace, rates: Mapping[str, float]) -> Iterator[Run]:
    """Yield the runs of the other seeds, seed by seed: each rule at its own rate, and the default, which finds the bounds, at all."""
    for seed in sorted(set(arguments.seeds))[1:]:
        for rule in arguments.rules:
            for rate in arguments.rates if rule == DEFAULT else [rates[rule]]:
                yield _run(rule, rate, seed, arguments)


def _run(rule: str, rate: float, seed: int, arguments: argparse.Namespace) -> Run:
    return Run(
        label=rule,
        seed=seed,
        sites=arguments.sites,
        alpha=arguments.alpha,
        rounds=arguments.rounds,
        steps=arguments.steps,
        learning_rate=rate,
        task=arguments.task,
        federation=federation_of(min_sites=2, rule=RULES[rule], **_sampling(arguments.fraction)),
    )


def _sampling(fraction: float) -> dict[str, object]:
    return {} if fraction == 1 else {"sampling": {"name": "fraction", "fraction": fraction}}


def has_bounds(run: Run) -> bool:
    """Whether a run also finds the bounds: the default rule's, of which each seed and rate has one."""
    return run.label == DEFAULT


def best_rates(done: Mapping[Run, Figures]) -> dict[str, float]:
    """Return each rule's learning rate: that of the lowest held-out loss on the first seed that all its rates have."""
    by_rule: dict[str, list[Run]] = {}
    for run in done:
        by_rule.setdefault(run.label, []).append(run)
    first = {rule: min(run.seed for run in runs) for rule, runs in by_rule.items()}
    return {
        rule: min((run for run in runs if run.seed == first[rule]), key=lambda run: done[run].loss).learning_rate
        for rule, runs in by_rule.items()
    }


def summarise(done: Mapping[Run, Figures]) -> list[Row]:
    """Return a row for each rule, the most accurate first."""
    rates = best_rates(done)
    chosen = {rule: {run.seed: done[run] for run in done if run.label == rule and run.learning_rate == rates[rule]} for rule in rates}
    visits = {rule: _visits(done, rule) for rule in rates}
    scores = {rule: {seed: 100 * figures.accuracy for seed, figures in found.items()} for rule, found in chosen.items()}
    rows = []
    for rule, found in chosen.items():
        reference = scores.get(DEFAULT, scores[rule])
        common = scores[rule].keys() & reference.keys()
        difference, error = paired(scores[rule], reference) if common else (float("nan"), None)
        rows.append(
            Row(
                rule=rule,
                learning_rate=rates[rule],
                seeds=len(found),
                accuracy=statistics.fmean(scores[rule].values()),
                difference=difference,
                error=error,
                loss=statistics.fmean(figures.loss for figures in found.values()),
                sent_bytes=statistics.fmean(figures.sent_bytes for figures in found.values()) / visits[rule],
                received_bytes=statistics.fmean(figures.received_bytes for figures in found.values()) / visits[rule],
            )
        )
    return sorted(rows, key=lambda row: -row.accuracy)


def _visits(done: Mapping[Run, Figures], rule: str) -> int:
    """Return how many updates a run of the rule has: nobody drops out."""
    run = next(run for run in done if run.label == rule)
    asked = float(json.loads(run.federation).get("sampling", {"fraction": 1})["fraction"])
    return math.ceil(asked * run.sites) * run.rounds


def show(rows: Sequence[Row], bounds: Mapping[str, float]) -> list[str]:
    """Return the table in Markdown, with the bounds at its end."""
    lines = ["| rule | rate | seeds | accuracy | to the default | loss | sent | received |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        error = "" if row.error is None else f" ± {row.error:.1f}"
        gap = "0" if row.rule == DEFAULT else f"{row.difference:+.1f}{error}"
        sizes = f"{row.sent_bytes / 1000:,.1f} kB | {row.received_bytes / 1000:,.1f} kB"
        lines.append(f"| {row.rule} | {row.learning_rate:g} | {row.seeds} | {row.accuracy:.1f} % | {gap} | {row.loss:.3f} | {sizes} |")
    lines += [f"| *{name.replace('_', ' ')}* | | | {100 * accuracy:.1f} % | | | - | - |" for name, accuracy in bounds.items()]
    return lines


def bounds_of(done: Mapping[Run, Figures]) -> dict[str, float]:
    """Return the accuracy of each bound at its best learning rate, and of no training; means over the seeds."""
    by_rate: dict[str, dict[float, list[float]]] = {}
    for run, figures in done.items():
        for name, accuracy in (figures.bounds or {}).items():
            by_rate.setdefault(name, {}).setdefault(run.learning_rate, []).append(accuracy)
    bounds = {name: max(statistics.fmean(scores) for scores in rates.values()) for name, rates in by_rate.items()}
    untrained = [figures.untrained for figures in done.values() if figures.untrained is not None]
    return bounds | ({"untrained": statistics.fmean(untrained)} if untrained else {})


def conclude(rows: Sequence[Row]) -> str:
    """Return whether the default rule is the best, or tied with it: no other better by more than two standard errors."""
    if DEFAULT not in {row.rule for row in rows}:
        return f"{DEFAULT} was not run"
    better = [row for row in rows if row.rule != DEFAULT and row.difference > 2 * (row.error or 0.0)]
    if not better:
        return f"{DEFAULT}, the default, is the best or tied with it: no rule is better by more than two standard errors"
    return f"{DEFAULT}, the default, is BEATEN by {', '.join(row.rule for row in better)}"


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.003, 0.01], help="learning rates to try")
    parser.add_argument("--task", choices=TASKS, default="network", help="network is quick; the others train by the workers' own loop")
    parser.add_argument("--no-bounds", action="store_true", help="leave out the bounds, which triple the training of a run that finds them")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a site in a round")
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the sites, asked in each round")
    parser.add_argument("--alpha", type=float, default=0.1, help="of the Dirichlet shares; less is less alike")
    parser.add_argument("--results", type=Path, default=Path("bench-quality.jsonl"), help="where runs are appended and found again")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw accuracies there; needs matplotlib")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Do what is missing, and print."""
    arguments = _parsed(given)
    needs_bounds = (lambda _run: False) if arguments.no_bounds else has_bounds
    runs = list(first_runs(arguments))
    done = complete(runs, arguments.results, needs_bounds)
    if all(run in done for run in runs):
        runs += other_runs(arguments, best_rates(done))
        done = complete(runs, arguments.results, needs_bounds)
    rows, bounds = summarise(done), bounds_of(done)
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "bounds": bounds, "conclusion": conclude(rows)}, indent=2))
    elif rows:
        print("\n".join([*show(rows, bounds), "", conclude(rows), ""]))
        bars = [(row.rule, row.accuracy) for row in rows] + [(name.replace("_", " "), 100 * value) for name, value in bounds.items()]
        print(write_bars(bars, "accuracy, %", arguments.plot))
    return 0 if all(run in done for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
