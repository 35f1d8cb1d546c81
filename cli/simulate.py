"""``wgctl federation simulate``: a federated job on this machine alone, with sites, faults and attacks made up and everything else real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cli.options import example, job_file_argument, json_option, override_option
from cli.output import error_console, is_terminal, note, print_fields, print_json_line, say, show_bytes
from wegeft.contracts.errors import InvalidData, InvalidSetting, Problem
from wegeft.contracts.federation import Exclusion, ReasonCode, RoundState
from wegeft.contracts.job import DatasetSpec, DatasetType, JobSpec

if TYPE_CHECKING:
    from simulation.preparation import Given, Simulation
    from simulation.reports import Figures, RoundReport, SimulationReport
    from simulation.scenario import Options
    from workers.crew import Crew

_EXAMPLE = """
wgctl federation simulate federated.yaml --data rows.jsonl --sites 20 --partition-by topic
wgctl federation simulate federated.yaml --data rows.jsonl --test-data heldout.jsonl --sites 100 --partition dirichlet:0.3 \
--partition-by topic --drop 0.2 --byzantine 5:gauge --seed 7 --output trial
"""
_PARTITION_HELP = "Who gets which rows: iid, dirichlet:ALPHA of each kind of row, or by:FIELD, a site for each value of a column."
_KIND_HELP = "Column whose values are the kinds of rows for dirichlet; more than 100 different ones are hashed to 10 kinds."
_ANSWER_HELP = "How long sites take to answer on the simulated clock: a median and the spread of its logarithm, such as 10m:0.5."
_OUT_HELP = "Folder that keeps each round as it is done, and the adapter; called again with it, the same command goes on there."


@click.command("simulate", epilog=example(_EXAMPLE))
@job_file_argument
@override_option
@click.option("--data", "data", multiple=True, required=True, metavar="FILE", help="Rows to share out; may be given again.")
@click.option("--test-data", "held_out", multiple=True, metavar="FILE", help="Rows to measure the aggregate on, after each round.")
@click.option("--type", "kind", type=click.Choice([kind.value for kind in DatasetType]), help="How rows say what to learn.")
@click.option("--sites", type=int, metavar="N", help="How many sites; left out with by:FIELD.")
@click.option("--partition", default="iid", show_default=True, metavar="PARTITION", help=_PARTITION_HELP)
@click.option("--partition-by", metavar="FIELD", help=_KIND_HELP)
@click.option("--drop", type=float, default=0.0, show_default=True, metavar="P", help="Chance of each site to miss a round.")
@click.option("--byzantine", metavar="N:ATTACK", help="N hostile sites and what they do; docs/federation.md lists the attacks.")
@click.option("--answer-time", default="0", show_default=True, metavar="MEDIAN[:SPREAD]", help=_ANSWER_HELP)
@click.option("--seed", type=int, help="Decides everything that is left to chance; by default the job's seed.")
@click.option("--rounds", type=int, metavar="N", help="Rounds to commit, in place of the job's.")
@click.option("--bounds", "has_bounds", is_flag=True, help="Also train each site alone, and all rows in one place.")
@click.option("--actors", type=int, metavar="N", help="Ray actors that train; by default one a core. They change no digest.")
@click.option("--inline", "is_inline", is_flag=True, help="Train in this process, without Ray.")
@click.option("--output", "out", type=click.Path(path_type=Path, file_okay=False), help=_OUT_HELP)
@json_option
def simulate(job_file: Path, overrides: tuple[str, ...], is_json: bool, out: Path | None, **given: Any) -> None:
    """Play a federated job with made-up sites on this machine: the same training, wire, gate, rules and defences, seeded.

    One line for each round: who was left out and why, losses on the held-out rows before and after, what the rule could not keep in
    the pair, and bytes. The same seed ends in the same digest. Ctrl-C ends it; with --output, what is done is kept.
    """
    from cli.preparation import prepare, read_job_file
    from simulation.journal import Journal
    from simulation.run import Around
    from simulation.run import simulate as play
    from workers.processor import usable_cores

    text, folder = read_job_file(job_file)
    spec = prepare(text, folder, overrides).spec
    options = _options(spec, given)
    _refuse(spec, options, given)
    simulation = _prepare(spec, options, given)
    if not is_json:
        _announce(simulation)
    with _stopping(out), _crew(simulation, given) as crew, _progress(len(simulation.examples), is_json=is_json) as done:
        journal = None if out is None else Journal(out.expanduser().absolute())
        tell: Callable[[RoundReport], None] = print_json_line if is_json else _tell
        around = Around(crew=crew, journal=journal, tell=tell, done=done, threads=usable_cores())
        report = play(simulation, around, has_bounds=given["has_bounds"])
    print_json_line(report) if is_json else _sum_up(report, out)


def _options(spec: JobSpec, given: dict[str, Any]) -> Options:
    from simulation.scenario import Options

    names = ("sites", "partition", "partition_by", "drop", "byzantine", "answer_time", "rounds")
    return Options(**{name: given[name] for name in names}, seed=spec.seed if given["seed"] is None else given["seed"])


def _refuse(spec: JobSpec, options: Options, given: dict[str, Any]) -> None:
    """Raise :class:`InvalidSetting` with everything that is wrong with the options."""
    from simulation.partition import Dirichlet, parse_partition
    from simulation.scenario import check_options
    from workers.processor import usable_cores

    problems = check_options(options, spec)
    if isinstance(parse_partition(options.partition), Dirichlet) and options.partition_by is None:
        hint = "the column that tells rows apart; messages or text hashes their content"
        problems.append(Problem(path="--partition-by", message="dirichlet needs the kinds of rows", hint=hint))
    actors, cores = given["actors"], usable_cores()
    if actors is not None and not 1 <= actors <= cores:
        problems.append(Problem(path="--actors", message=f"must be 1 to {cores}, one a core", value=str(actors)))
    if actors is not None and given["is_inline"]:
        problems.append(Problem(path="--actors", message="cannot be given with --inline, which trains in one process", value=str(actors)))
    if given["has_bounds"] and not given["held_out"]:
        problems.append(Problem(path="--bounds", message="bounds are measured on held-out rows", hint="give --test-data"))
    for name, files in (("--data", given["data"]), ("--test-data", given["held_out"])):
        missing = [text for text in files if not Path(text).expanduser().is_file()]
        problems += [Problem(path=name, message="there is no such file", value=text) for text in missing]
    if problems:
        raise InvalidSetting(f"{len(problems)} problem{'s' if len(problems) != 1 else ''} with the simulation", problems=problems)


def _prepare(spec: JobSpec, options: Options, given: dict[str, Any]) -> Simulation:
    from simulation.partition import ByField, parse_partition
    from simulation.preparation import prepare_simulation

    partition = parse_partition(options.partition)
    column = partition.name if isinstance(partition, ByField) else options.partition_by
    return prepare_simulation(spec, options, _read(given, column))


def _read(given: dict[str, Any], column: str | None) -> Given:
    """Return the rows, and what each of them holds in ``column``."""
    from simulation.preparation import Given
    from workers.data import read_datasets

    data = [_dataset(path, given["kind"]) for path in given["data"]]
    held_out = [_dataset(path, given["kind"]) for path in given["held_out"]]
    rows = read_datasets([(Path(one.path), one, one.path) for one in data])
    measured = read_datasets([(Path(one.path), one, one.path) for one in held_out]) if held_out else []
    values = [0] * len(rows) if column is None else list(_values(data, column))
    return Given(rows=rows, values=values, held_out=measured)


def _dataset(path: str, kind: str | None) -> DatasetSpec:
    from pydantic import ValidationError

    try:
        return DatasetSpec.model_validate(
            {"path": str(Path(path).expanduser().absolute()), "type": None if kind is None else DatasetType(kind)}
        )
    except ValidationError as error:
        hint = "a file that ends in .jsonl, .json, .csv or .parquet"
        raise InvalidSetting("not a data set", path="--data", value=path, hint=hint) from error


def _values(data: Sequence[DatasetSpec], column: str) -> Iterator[object]:
    """Yield what each record holds in ``column``; all were read before as rows, so each is whole."""
    from workers.records import read_records

    for one in data:
        for located in read_records(Path(one.path), one):
            record = located.record
            if not isinstance(record, dict) or column not in record:
                names = ", ".join(map(str, record)) if isinstance(record, dict) else "none"
                place = f"{one.path} row {located.row}"
                raise InvalidData("the row has no such column", path=f"{place}: {column}", hint=f"the row's columns are: {names}")
            yield record[column]


@contextmanager
def _crew(simulation: Simulation, given: dict[str, Any]) -> Iterator[Crew[Any, Any]]:
    """Give what trains, and end it afterwards."""
    import warnings

    from workers.crew import InlineCrew, RayCrew
    from workers.processor import usable_cores

    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    if given["is_inline"]:
        crew: Crew[Any, Any] = InlineCrew(simulation.workplace.prepare)
    else:
        from infra.settings import load_settings

        hands = min(given["actors"] or usable_cores(), len(simulation.examples))
        crew = RayCrew(simulation.workplace.prepare, hands, load_settings().home / "ray-simulation", common="start")
    try:
        yield crew
    finally:
        crew.close()


@contextmanager
def _progress(sites: int, *, is_json: bool) -> Iterator[Callable[[int], None]]:
    """Give what shows how many sites of a round have trained, where a person looks on."""
    import sys

    if is_json or not is_terminal(sys.stderr):
        yield lambda _count: None
        return
    with error_console().status("") as status:
        yield lambda count: status.update(f"{count} of at most {sites} sites have trained")


@contextmanager
def _stopping(out: Path | None) -> Iterator[None]:
    """Say what becomes of what is done when somebody presses Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        kept = (
            f"the rounds that are done are in {out}, and the same command goes on with them" if out else "nothing is kept without --output"
        )
        note(f"\nthe simulation stops here; {kept}")
        raise


def _announce(simulation: Simulation) -> None:
    counts, scenario = sorted(simulation.examples.values()), simulation.scenario
    hostile = scenario.hostility
    column = f" by {scenario.partition_by}" if scenario.partition_by else ""
    print_fields(
        [
            ("sites", f"{len(counts)}, with {counts[0]:,} to {counts[-1]:,} rows, {counts[len(counts) // 2]:,} in the middle"),
            ("rows", f"{sum(counts):,}, {scenario.partition}{column} ({simulation.kinds})"),
            ("rule", f"{simulation.section.rule.name}, defence {simulation.section.defence.name}, wire {simulation.section.wire}"),
            ("hostile", f"{hostile.sites}, {hostile.attack}" if hostile else None),
        ]
    )
    say("")


_WORDS = {
    ReasonCode.NO_ANSWER: "dropped",
    ReasonCode.LATE: "late",
    ReasonCode.NO_WEIGHT: "excluded by the defence",
}
_SHOWN = 8


def _tell(report: RoundReport) -> None:
    """Print a try at a round."""
    record = report.record
    number = f"{record.round}.{record.attempt}" if record.attempt > 1 else str(record.round)
    state = f"{len(record.members)} of {len(report.asked)} in" if record.state is RoundState.COMMITTED else f"failed: {record.failure}"
    say(f"round {number}  {state}", style=None if record.state is RoundState.COMMITTED else "red")
    print_fields(
        [
            ("  asked", _listed(report.asked)),
            *((f"  {word}", _listed([one.site for one in found])) for reason, word in _WORDS.items() if (found := report.left_out(reason))),
            ("  refused", _listed([f"{one.site} ({_paths(one)})" for one in report.left_out(ReasonCode.REFUSED)]) or None),
            ("  failed to train", _listed([f"{one.site} ({_first(one)})" for one in report.left_out(ReasonCode.TRAINING_FAILED)]) or None),
            ("  hostile in it", _listed(report.hostile_members) or None),
            ("  loss", _change(report.before, report.after)),
            ("  loss of training", None if report.train_loss is None else f"{report.train_loss:.4f}"),
            ("  residual", f"{record.measures['aggregation_residual']:.2%} of the update" if record.measures else None),
            ("  bytes", f"{show_bytes(report.sent_bytes)} sent, {show_bytes(report.received_bytes)} received"),
            ("  closed after", f"{report.seconds:,.0f} s" if report.seconds else None),
        ]
    )


def _paths(one: Exclusion) -> str:
    return ", ".join(problem.path or "-" for problem in one.problems)


def _first(one: Exclusion) -> str:
    return str(one.problems[0]) if one.problems else "-"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _change(before: Figures | None, after: Figures | None) -> str | None:
    return None if before is None or after is None else f"{before.loss:.4f} → {after.loss:.4f}"


def _sum_up(report: SimulationReport, out: Path | None) -> None:
    say("")
    fields: list[tuple[str, str | None]] = [
        ("rounds", f"{report.rounds} committed, in {report.tries} tries"),
        ("held out", _change(report.before, report.after)),
    ]
    if report.after is not None:
        fields += [(f"  {name}", f"{value:.4f}") for name, value in sorted(report.after.metrics.items())]
    for bound in report.bounds:
        told = ", ".join(f"{name} {value:.4f}" for name, value in sorted(bound.metrics.items()))
        fields.append((bound.name.replace("_", " "), f"loss {bound.loss:.4f}, {told}"))
    bytes_ = f"{show_bytes(report.sent_bytes)} sent, {show_bytes(report.received_bytes)} received"
    print_fields([*fields, ("bytes", bytes_), ("result", report.result), ("kept in", str(out) if out else None)])
