"""The same small real task with every method: held-out loss, step time, peak memory, trained numbers and bytes of the adapter.

    python -m bench.methods --model SmolLM2-135M-Instruct.Q4_1.gguf    sums of two numbers, 50 steps of 16 rows a method
    python -m bench.methods                                            the same on a tiny model of random weights, for a try

Every run is one job through the worker's own loop, in a process of its own, and its figures are appended to ``--results`` when it ends:
called again, the bench goes on where it stopped. With ``--rate-factors`` each method runs at several learning rates, and the one of the
lowest training loss counts; held-out rows choose nothing. On a machine that is never quiet, ``--clock cpu --threads 1`` counts the seconds
that the core worked.

A method is on the front of loss against a cost if no other has both less loss and less of it. WeGeFT is looked for on each front, and where
it is not, the methods that beat it are named.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from bench._kept_rows import append_row, kept_rows
from bench._memory import peak_mebibytes
from bench._method_table import Row, describe_fronts, show_plot, show_table, write_picture
from wegeft.contracts.adapter import WEIGHTS_FILE
from wegeft.contracts.job import JobSpec
from wegeft.contracts.methods import METHODS, Method
from wegeft.contracts.training import TrainingTask
from workers.adapter_files import save_adapter
from workers.base_model import BaseModel, default_cache, load_base_model, request_of
from workers.data import read_rows

ROWS = Path(__file__).parent.parent / "examples" / "arithmetic"
RATES: dict[Method, float] = {
    Method.WEGEFT: 7e-4, Method.LORA: 1e-3, Method.RSLORA: 5e-4, Method.DORA: 1e-3, Method.PISSA: 3e-4, Method.ADALORA: 3e-3,
    Method.VERA: 1e-2, Method.VBLORA: 1e-2, Method.RANDLORA: 1e-3, Method.GRALORA: 1e-3, Method.DELORA: 3e-3, Method.HIRA: 3e-3,
    Method.LOHA: 3e-3, Method.LOKR: 3e-3, Method.MISS: 3e-4, Method.OFT: 1e-3, Method.BOFT: 1e-3, Method.HRA: 1e-3, Method.ROAD: 5e-3,
    Method.C3A: 3e-2, Method.FOURIERFT: 3e-2, Method.IA3: 1e-2,
}  # fmt: skip
"""Learning rates to start from: about those of each method's own authors, scaled to a run of fifty steps."""
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
COSTS = {"trainable": "trained numbers", "adapter_bytes": "bytes", "step_seconds": "seconds a step", "peak_mebibytes": "peak MiB"}
TINY = "tiny"
_WARM_UP_STEPS = 2


@dataclass(frozen=True, order=True)
class Run:
    """One job of the bench: two with equal fields are the same run."""

    label: str
    """``method``, or ``method:rank``."""
    seed: int
    learning_rate: float
    steps: int
    model: str
    clock: str
    threads: int
    rows: int = 16
    """Rows a step."""


@dataclass(frozen=True)
class Figures:
    """What a run showed."""

    held_out_loss: float
    train_loss: float
    trainable: int
    adapter_bytes: int
    step_seconds: float
    """Median, after the first two."""
    peak_mebibytes: float


def spec_of(run: Run) -> JobSpec:
    """Return the job of a run."""
    name, _, rank = run.label.partition(":")
    fields: dict[str, Any] = {
        "name": "bench", "base_model": run.model, "method": name, "rank": int(rank) if rank else None, "seed": run.seed,
        "datasets": [{"path": "train.jsonl"}], "test_datasets": [{"path": "heldout.jsonl"}], "sequence_len": 128, "max_steps": run.steps,
        "micro_batch_size": run.rows, "learning_rate": run.learning_rate, "warmup_ratio": 0.1, "save_every": "7d",
    }  # fmt: skip
    return JobSpec.model_validate_json(json.dumps(fields))


def perform(run: Run) -> Figures:
    """Train and measure, in this process."""
    import torch

    from workers.train import Callbacks, TrainingInputs, train

    torch.set_num_threads(run.threads)
    clock, spec, ends = CLOCKS[run.clock], spec_of(run), list[float]()

    def note(event: Any) -> None:
        if event.type == "progress":
            ends.append(clock())

    with tempfile.TemporaryDirectory() as folder:
        base = load_model(spec, Path(folder))
        rows, held_out = (read_rows(ROWS / dataset.path, dataset) for dataset in (*spec.datasets, *spec.test_datasets))
        inputs = TrainingInputs(base=base, train_rows=rows, held_out_rows=held_out)
        callbacks = Callbacks(report=note, save=lambda _step, _files: None, should_stop=lambda: False, now=clock)
        task = TrainingTask(job_id="bench", attempt=1, spec=spec, heartbeat_seconds=1, lease_seconds=5)
        outcome = train(task, inputs, callbacks)
        peak = peak_mebibytes()
        save_adapter(outcome.model, Path(folder) / "adapter")
        size = (Path(folder) / "adapter" / WEIGHTS_FILE).stat().st_size
    durations = [after - before for before, after in pairwise(ends)]
    return Figures(
        held_out_loss=outcome.metrics["eval_loss"],
        train_loss=outcome.metrics["train_loss"],
        trainable=outcome.trainable_parameters,
        adapter_bytes=size,
        step_seconds=statistics.median(durations[_WARM_UP_STEPS - 1 :] or durations or [outcome.state.seconds]),
        peak_mebibytes=peak,
    )


def load_model(spec: JobSpec, folder: Path) -> BaseModel:
    """Return the base model; ``tiny`` is made in ``folder``."""
    if spec.base_model == TINY:
        from tests.tiny_models import make_model_folder

        place = make_model_folder(folder / TINY, layers=4, width=128)
        spec = spec.model_copy(update={"base_model": str(place)})
    return load_base_model(request_of(spec, default_cache()))


def perform_apart(run: Run) -> Figures | None:
    """Do the run in a process of its own, so that its memory is its own; None where it failed, which is told."""
    command = [sys.executable, "-m", "bench.methods", "--run", json.dumps(asdict(run))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        print(f"{run.label} failed and will be tried again by the next call: {lines[-1]}", file=sys.stderr)
        return None
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def known(results: Path) -> dict[Run, Figures]:
    """Return the runs that are done."""
    return {Run(**entry["run"]): Figures(**entry["figures"]) for entry in kept_rows(results)}


def wanted(arguments: argparse.Namespace) -> Iterator[Run]:
    """Yield every run that is asked for, seed by seed, so that methods are compared as early as possible."""
    for seed, factor, label in product(arguments.seeds, arguments.rate_factors, arguments.methods):
        rate = RATES[Method(label.partition(":")[0])] * factor
        yield Run(
            label=label, seed=seed, learning_rate=float(f"{rate:.6g}"), steps=arguments.steps, model=arguments.model,
            clock=arguments.clock, threads=arguments.threads, rows=arguments.rows,
        )  # fmt: skip


def summarise(runs: Mapping[Run, Figures]) -> list[Row]:
    """Return a row for each method: means over the seeds, at the learning rate of the lowest training loss."""
    by_label: dict[str, dict[float, list[Figures]]] = {}
    for run, figures in sorted(runs.items()):
        by_label.setdefault(run.label, {}).setdefault(run.learning_rate, []).append(figures)
    rows = []
    for label, by_rate in by_label.items():
        rate, best = min(by_rate.items(), key=lambda item: statistics.fmean(figures.train_loss for figures in item[1]))
        losses = [figures.held_out_loss for figures in best]
        costs = {cost: statistics.fmean(getattr(figures, cost) for figures in best) for cost in COSTS}
        spread = statistics.stdev(losses) if len(losses) > 1 else None
        rows.append(Row(label=label, learning_rate=rate, seeds=len(best), loss=statistics.fmean(losses), spread=spread, costs=costs))
    return sorted(rows, key=lambda row: row.loss)


def label(text: str) -> str:
    """Return a method, or method:rank, as given; raise ``ArgumentTypeError`` where it is neither."""
    name, colon, rank = text.partition(":")
    if name not in set(Method) or (colon and not (METHODS[Method(name)].rank and rank.isdecimal() and int(rank))):
        known_names = ", ".join(f"{method}" for method in Method)
        raise argparse.ArgumentTypeError(f"{text!r} is not a method, or method:rank of one that has a rank: {known_names}")
    return text


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="id, folder or .gguf of the base model; default: a tiny one of random weights")
    parser.add_argument("--methods", nargs="+", type=label, default=[*map(str, Method), "wegeft:16"], metavar="METHOD[:RANK]")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows", type=int, default=16, help="rows a step")
    parser.add_argument("--seeds", nargs="+", type=int, default=[7])
    parser.add_argument("--rate-factors", nargs="+", type=float, default=[1.0], help="times each method's own learning rate")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what a second is; cpu is for one thread")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--results", type=Path, default=Path("bench-methods.jsonl"), help="where runs are appended and found again")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw loss against trained numbers there; needs matplotlib")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    arguments = parsed(given)
    if arguments.run:
        print(json.dumps(asdict(perform(Run(**arguments.run)))))
        return 0
    done, runs = known(arguments.results), list(wanted(arguments))
    for number, run in enumerate(runs, start=1):
        if run in done:
            continue
        print(f"{number} of {len(runs)}: {run.label}, seed {run.seed}, learning rate {run.learning_rate:g}", file=sys.stderr)
        figures = perform_apart(run)
        if figures is not None:
            done[run] = figures
            append_row(arguments.results, {"run": asdict(run), "figures": asdict(figures)})
    rows = summarise({run: done[run] for run in runs if run in done})
    tell(rows, arguments)
    return 0 if all(run in done for run in runs) else 1


def tell(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "wegeft": describe_fronts(rows, COSTS)}, indent=2))
        return
    if not rows:
        return
    print(f"{arguments.model}, {arguments.steps} steps of {arguments.rows} rows, {arguments.clock} clock, {arguments.threads} threads\n")
    print(show_table(rows, COSTS))
    print("\n" + "\n".join(describe_fronts(rows, COSTS)) + "\n")
    if arguments.plot and write_picture(rows, arguments.plot):
        print(f"drawn in {arguments.plot}")
    else:
        if arguments.plot:
            print("matplotlib is not installed; drawn in characters instead", file=sys.stderr)
        print(show_plot(rows))


if __name__ == "__main__":
    sys.exit(main())
