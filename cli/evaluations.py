"""``wgctl adapters evaluations`` and ``diff``: what was measured of versions, and how two of them differ."""

from __future__ import annotations

import math
from pathlib import Path

import rich_click as click
from pydantic import ValidationError

from cli.connection import connect
from cli.options import example, json_option
from cli.output import note, print_fields, print_json, print_table, say
from wegeft.contracts.comparison import ComparisonView, GroupDifference
from wegeft.contracts.errors import InvalidSetting
from wegeft.contracts.provenance import EvaluationReport, EvaluationView


@click.group("evaluations", no_args_is_help=True)
def evaluations() -> None:
    """List what was measured of a version, or report a measurement."""


@evaluations.command("ls", epilog=example("wgctl adapters evaluations ls demo/arithmetic@3"))
@click.argument("ref")
@json_option
def list_evaluations(ref: str, is_json: bool) -> None:
    """List what was measured of a version: by its job, and by whoever has reported."""
    with connect() as client:
        found = client.evaluations(ref)
    if is_json:
        print_json(found)
    elif found.evaluations:
        print_table(["metric", "#value", "data set", "measured by"], [_row(one) for one in found.evaluations])
    else:
        note(f"nothing was measured of {found.ref}")


def _row(one: EvaluationView) -> tuple[str, str, str, str]:
    data = " ".join(part for part in (one.dataset_name, one.dataset_digest and one.dataset_digest[:19]) if part)
    return one.metric, f"{one.value:.6g}", data or "-", one.created_by if one.is_reported else "its job"


@evaluations.command(
    "add",
    epilog=example("wgctl adapters evaluations add demo/arithmetic@3 accuracy 0.93 --data test.jsonl"),
    context_settings={"ignore_unknown_options": True},  # a negative value is not an option
)
@click.argument("ref")
@click.argument("metric")
@click.argument("value", type=float)
@click.option("--data", metavar="FILE|sha256:...", help="The data set's file, of which only the digest is sent, or its digest.")
@click.option("--dataset", "dataset_name", metavar="NAME", help="What the data set is called.")
@json_option
def add_evaluation(ref: str, metric: str, value: float, data: str | None, dataset_name: str | None, is_json: bool) -> None:
    """Report what was measured of a version; measured again on the same data, the new value stands."""
    file = Path(data) if data and not data.startswith("sha256:") else None
    digest = _digest_of(file) if file else data
    name = dataset_name or (file.name if file else None)
    try:
        report = EvaluationReport(metric=metric, value=value, dataset_digest=digest, dataset_name=name)
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False)
        raise InvalidSetting(str(first["msg"]), path=str(first["loc"][0]), value=first["input"]) from error
    with connect() as client:
        view = client.report_evaluation(ref, report)
    if is_json:
        print_json(view)
    else:
        say(f"{view.metric} of version {view.version} is {view.value:.6g}")


def _digest_of(path: Path) -> str:
    import hashlib

    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise InvalidSetting(f"the file cannot be read: {error.strerror}", path="--data", value=str(path)) from error


@click.command("diff", epilog=example("wgctl adapters diff demo/arithmetic@1 demo/arithmetic@2"))
@click.argument("first")
@click.argument("second")
@json_option
def diff(first: str, second: str, is_json: bool) -> None:
    """Say how two versions differ in what they do: configuration, generators group by group, and what was measured of them.

    Generators are compared by their products G, so that factors which are only written otherwise are equal: norms, the norm of the
    difference, the cosine, and the largest angle between what they read and what they write.
    """
    with connect() as client:
        view = client.compare(first, second)
    if is_json:
        print_json(view)
        return
    _show(view)


def _show(view: ComparisonView) -> None:
    print_fields(
        [
            ("first", f"{view.first}  {view.base_models[0]}"),
            ("second", f"{view.second}  {view.base_models[1]}"),
            ("generators", view.incomparable and f"not compared: {view.incomparable}"),
            ("cosine", _number(view.cosine)),
            ("|G1|, |G2|", None if view.first_norm is None else f"{view.first_norm:.6g}, {view.second_norm or 0.0:.6g}"),
            ("|G2 - G1|", _number(view.difference)),
        ]
    )
    if view.config:
        print_table(["field", "first", "second"], [(one.field, one.first or "-", one.second or "-") for one in view.config])
    if view.groups:
        columns = ["group", "#|G1|", "#|G2|", "#|G2-G1|", "#cosine", "#reads, °", "#writes, °"]
        print_table(columns, [_group_row(one) for one in view.groups])
    if view.evaluations:
        rows = [(one.metric, f"{one.first:.6g}", f"{one.second:.6g}", f"{one.delta:+.6g}") for one in view.evaluations]
        print_table(["metric", "#first", "#second", "#change"], rows)


def _group_row(one: GroupDifference) -> tuple[str, ...]:
    angles = (f"{math.degrees(max(found)):.2f}" if found else "-" for found in (one.read_angles, one.write_angles))
    return (one.group, *(_number(value) or "-" for value in (one.first_norm, one.second_norm, one.difference, one.cosine)), *angles)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"
