"""Runs of simulated federations for benchmarks: each done once, appended to a file, and found again there."""

from __future__ import annotations

import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import _arithmetic, _rotated_digits
from bench._digit_network import hand_for, network_simulation, rotated
from bench._kept_rows import append_row, kept_rows
from simulation.attacks import Attack
from simulation.preparation import Simulation, prepare_simulation
from simulation.reports import RoundReport, SimulationReport
from simulation.run import Around, simulate
from simulation.scenario import Options
from wegeft.contracts.errors import RoundsFailed
from wegeft.contracts.federation_spec import FederationSpec
from workers.crew import InlineCrew
from workers.simulated_site import AnyOrder, AnyResult


@dataclass(frozen=True, order=True)
class Run:
    """One simulation: two with equal fields are the same."""

    label: str
    """What is compared."""
    seed: int
    sites: int
    alpha: float
    """Of the Dirichlet shares of labels, or of kinds of questions."""
    rounds: int
    steps: int
    learning_rate: float
    federation: str
    """The section, as JSON."""
    byzantine: str | None = None
    task: str = "network"
    """``network``, trained by a loop of the bench's own, or ``vit`` or ``language``, by the workers'."""


TASKS = ("network", "vit", "language")


@dataclass(frozen=True)
class Figures:
    """What a run showed."""

    accuracy: float
    """Held out, after the last round, 0 to 1; of a language model, of the answers' tokens."""
    loss: float
    sent_bytes: int
    """By all sites in all rounds, files alone."""
    received_bytes: int
    hostile_accepted: int
    """Updates of hostile sites that the gate let through, in all rounds."""
    hostile_sent: int
    residual: float
    """Mean aggregation residual."""
    bounds: Mapping[str, float] | None = None
    """Accuracy of ``local_only`` and ``centralised``, where they were asked for."""
    failure: str | None = None
    """Why the rounds failed."""
    untrained: float | None = None
    """Accuracy before the first round; None of a run that was kept before this was."""


def perform(run: Run, folder: Path, *, has_bounds: bool = False) -> Figures:
    """Simulate and measure, in this process; the base model of ``vit`` is made in ``folder`` once."""
    simulation, crew = _prepared(run, folder)
    reports: list[RoundReport] = []
    try:
        found: SimulationReport | None = simulate(simulation, Around(crew=crew, tell=reports.append), has_bounds=has_bounds)
        failure = None
    except RoundsFailed:
        found, failure = None, str(reports[-1].record.failure)
    before, after = reports[0].before, reports[-1].after
    assert before is not None
    assert after is not None
    return Figures(
        accuracy=_accuracy(after.metrics),
        loss=after.loss,
        sent_bytes=sum(report.sent_bytes for report in reports),
        received_bytes=sum(report.received_bytes for report in reports),
        hostile_accepted=sum(len(accepted(report)) for report in reports),
        hostile_sent=sum(len(report.hostile) for report in reports),
        residual=statistics.fmean(report.record.measures.get("aggregation_residual", 0.0) for report in reports),
        bounds={bound.name: _accuracy(bound.metrics) for bound in found.bounds} if found and has_bounds else None,
        failure=failure,
        untrained=_accuracy(before.metrics),
    )


def _accuracy(metrics: Mapping[str, float]) -> float:
    return metrics.get("accuracy", metrics.get("token_accuracy", float("nan")))


def accepted(report: RoundReport) -> set[str]:
    """Return the hostile sites whose update passed the gate, whatever weight it got."""
    return {member.site for member in report.record.members} & set(report.hostile)


def _prepared(run: Run, folder: Path) -> tuple[Simulation, InlineCrew[AnyOrder, AnyResult]]:
    """Return the simulation of a run, and who trains."""
    section = FederationSpec.model_validate_json(run.federation)
    partition = f"dirichlet:{run.alpha:g}"
    options = Options(sites=run.sites, partition=partition, seed=run.seed, byzantine=run.byzantine, rounds=run.rounds)
    if run.task == "network":
        quick = network_simulation(section, options, run.steps)
        return quick, InlineCrew(lambda: hand_for(quick, run.learning_rate))
    size: dict[str, Any] = {"steps": run.steps, "learning_rate": run.learning_rate}
    if run.task == "language":
        spec, given = _arithmetic.job_of(_arithmetic.find_model(), **size), _arithmetic.read_given()
    else:
        spec, given = _rotated_digits.job_of(_rotated_digits.make_base(folder / "rotated-digits-base"), **size), rotated()
    simulation = prepare_simulation(spec, options, given, section)
    return simulation, InlineCrew(simulation.workplace.prepare)


def known(results: Path) -> dict[Run, Figures]:
    """Return the runs that are done."""
    return {Run(**entry["run"]): Figures(**entry["figures"]) for entry in kept_rows(results)}


def complete(runs: Sequence[Run], results: Path, needs_bounds: Callable[[Run], bool] = lambda _run: False) -> dict[Run, Figures]:
    """Return the figures of all runs, doing those that are not in ``results`` and appending each when it ends; Ctrl-C ends it early."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    done = known(results)
    missing = [run for run in runs if run not in done]
    try:
        if missing:
            _do(missing, results, needs_bounds, done)
    except KeyboardInterrupt:
        print(f"stopped; what is done is in {results}", file=sys.stderr)
    return {run: done[run] for run in runs if run in done}


def _do(missing: Sequence[Run], results: Path, needs_bounds: Callable[[Run], bool], done: dict[Run, Figures]) -> None:
    import torch

    torch.set_num_threads(1)
    for number, run in enumerate(missing, start=1):
        print(f"{number} of {len(missing)}: {run.label}, seed {run.seed}", file=sys.stderr, flush=True)
        done[run] = perform(run, results.parent, has_bounds=needs_bounds(run))
        append_row(results, {"run": asdict(run), "figures": asdict(done[run])})


def federation_of(**fields: Any) -> str:
    """Return a ``federation:`` section as a run keeps it."""
    return json.dumps({"max_failed_rounds": 0, "deadline": "1h", **fields}, sort_keys=True)


def paired(scores: Mapping[int, float], reference: Mapping[int, float]) -> tuple[float, float | None]:
    """Return the mean difference over the seeds that both have, and its standard error; None for one seed."""
    gaps = [scores[seed] - reference[seed] for seed in sorted(scores.keys() & reference.keys())]
    return statistics.fmean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None


def write_bars(rows: Iterable[tuple[str, float]], title: str, path: Path | None) -> str:
    """Return a plot in characters; with a path, draw it there too where matplotlib is installed."""
    import plotext

    names, values = zip(*rows, strict=True)
    if path is not None:
        _draw(names, values, title, path)
    plotext.clear_figure()
    plotext.simple_bar(list(names), list(values), width=100, title=title)
    return str(plotext.uncolorize(plotext.build()))


def _draw(names: Sequence[str], values: Sequence[float], title: str, path: Path) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("matplotlib is not installed; drawn in characters alone", file=sys.stderr)
        return
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(names) + 1))
    axes.barh(list(names)[::-1], list(values)[::-1])
    axes.set_title(title)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


ATTACKS_PAST_THE_GATE = (
    Attack.BOOST, Attack.ALIE, Attack.GAUGE, Attack.INNER_PRODUCT, Attack.SIGN_FLIP, Attack.LABEL_FLIP, Attack.SAME_VALUE, Attack.ECHO,
    Attack.DENORMAL,
)  # fmt: skip
"""Attacks that no gate can tell from honest work."""
