"""``wgctl submit`` and ``wgctl validate``: from a job file to a queued job."""

from __future__ import annotations

import uuid
from pathlib import Path

import rich_click as click
from pydantic import BaseModel, ConfigDict

from cli.connection import Service, find_service
from cli.narration import transfer_bar
from cli.options import example, job_file_argument, json_option, override_option
from cli.output import note, print_fields, print_json, print_table, say, show_bytes
from cli.preparation import DataFile, PreparedJob, prepare, read_job_file
from infra.settings import Settings, load_settings
from wegeft.client import Client
from wegeft.contracts.adapter import is_digest
from wegeft.contracts.federation_spec import StartSpec
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import JobView


class FilePlan(BaseModel):
    """A local file of a job."""

    model_config = ConfigDict(frozen=True)

    section: str
    path: str
    rows: int
    size: int
    """Bytes to upload, unless the service has them already."""


class JobPlan(BaseModel):
    """What a job would do, as far as can be told before it is tokenised."""

    model_config = ConfigDict(frozen=True)

    spec: JobSpec
    files: tuple[FilePlan, ...]
    upload_bytes: int
    training_rows: int | None
    """None where a data set was uploaded before, so that its rows are not known here."""
    held_out_rows: int | None
    total_steps: int | None
    """Optimizer steps, if no row is dropped and the job does not stop early."""


@click.command()
@job_file_argument
@override_option
@click.option("-w", "--wait", "is_waiting", is_flag=True, help="Follow the job, and exit as it ends. Ctrl-C ends the looking, not the job.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Print the whole job, and what would be uploaded; send nothing.")
@click.option("--idempotency-key", metavar="TEXT", help="Submitting again with the same key returns the same job.")
@json_option
def submit(job_file: Path, overrides: tuple[str, ...], is_waiting: bool, is_dry: bool, idempotency_key: str | None, is_json: bool) -> None:
    """Queue the job that a file describes, and print its id.

    Local data sets are checked row by row and uploaded; a federated job has none, its sites bring their own. Without WEGEFT_SERVER, a
    service is started on this machine if none runs.
    """
    settings = load_settings()
    text, folder = read_job_file(job_file)
    prepared = prepare(text, folder, overrides, is_remote=bool(settings.server))
    if is_dry:
        _show_plan(plan_of(prepared), is_json=is_json)
        return
    with (find_service(settings) or _start_service(settings)).connect() as client:
        view = send(client, prepared, idempotency_key or uuid.uuid4().hex)
        if prepared.spec.federation is not None and not is_json:
            note(f"sites join by invitation: wgctl federation invite {view.id} --name site-a")
        if not is_waiting:
            print_json(view) if is_json else say(view.id)
            return
        _follow(client, view, is_json=is_json)


@click.command()
@job_file_argument
@override_option
@json_option
def validate(job_file: Path, overrides: tuple[str, ...], is_json: bool) -> None:
    """Check a job file and its data sets; nothing is sent.

    Every problem is told at once: line, field, value, and what would be right.
    """
    settings = load_settings()
    text, folder = read_job_file(job_file)
    plan = plan_of(prepare(text, folder, overrides, is_remote=bool(settings.server)))
    if is_json:
        print_json(plan)
        return
    say(f"{job_file}: right", style="green")
    _show_figures(plan)


submit.epilog = example(
    """
    wgctl submit job.yaml
    wgctl submit job.yaml --wait --set learning_rate=1e-3 --set num_epochs=1
    """
)
validate.epilog = example("wgctl validate job.yaml --set rank=32")


def plan_of(prepared: PreparedJob) -> JobPlan:
    """Return what a job would do."""
    spec = prepared.spec
    files = tuple(FilePlan(section=_place(file), path=str(file.path), rows=file.rows, size=file.size) for file in prepared.files)
    rows = None if spec.federation else _count_rows(prepared, "datasets")
    tested = _count_rows(prepared, "test_datasets")
    if rows is None:
        held_out, training = (tested if spec.test_datasets else None), None
    else:
        held_out = tested if spec.test_datasets else spec.count_held_out(rows)
        training = rows - (0 if spec.test_datasets else spec.count_held_out(rows))
    return JobPlan(
        spec=spec,
        files=files,
        upload_bytes=sum({file.path: file.size for file in prepared.files}.values()),
        training_rows=training,
        held_out_rows=held_out,
        total_steps=spec.max_steps if training is None else spec.count_steps(training),
    )


def _place(file: DataFile) -> str:
    return f"{file.section}[{file.index}]"


def _count_rows(prepared: PreparedJob, section: str) -> int | None:
    counts = [file.rows for file in prepared.files if file.section == section]
    return sum(counts) if len(counts) == len(getattr(prepared.spec, section)) else None


def send(client: Client, prepared: PreparedJob, idempotency_key: str) -> JobView:
    """Upload what the service does not have, queue the job, and return it."""
    sizes = {file.path: file.size for file in prepared.files}
    digests: dict[Path, str] = {}
    with transfer_bar(sum(sizes.values())) as bar:
        for path, size in sizes.items():
            digests[path] = client.upload(path, on_progress=bar.update).digest
            bar.finish_file(size)
    return client.submit(_with_start(client, prepared.with_digests(digests)), idempotency_key=idempotency_key)


def _with_start(client: Client, spec: JobSpec) -> JobSpec:
    """Return the job with the digests of the adapter that its federation begins with, which is made where none is given, and uploaded."""
    if spec.federation is None:
        return spec
    start, change = spec.federation.start, dict[str, object]()
    if start is None:
        from workers.untrained import make_untrained

        made = make_untrained(spec)
        config, weights = client.upload(made.config).digest, client.upload(made.weights).digest
        change["base_model_revision"] = made.commit or spec.base_model_revision
    else:
        config, weights = (text if is_digest(text) else client.upload(Path(text)).digest for text in (start.config, start.weights))
    federation = spec.federation.model_copy(update={"start": StartSpec(config=config, weights=weights)})
    return spec.model_copy(update={**change, "federation": federation})


def _start_service(settings: Settings) -> Service:
    from cli.embedded import join_or_start

    note("no service is configured: starting one on this machine")
    record = join_or_start(settings)
    note(f"it answers at {record.server}; wgctl down stops it")
    service = find_service(settings)
    assert service is not None  # noqa: S101 - it has just answered
    return service


def _follow(client: Client, view: JobView, *, is_json: bool) -> None:
    from cli.jobs import end_like, follow_to_end

    if not is_json:
        say(view.id)
    final = follow_to_end(client, view.id, is_quiet=is_json)
    if is_json:
        print_json(final)
    end_like(final)


def _show_plan(plan: JobPlan, *, is_json: bool) -> None:
    if is_json:
        print_json(plan)
        return
    import yaml

    say(yaml.safe_dump(plan.spec.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True).rstrip())
    say("")
    print_table(["file", "#rows", "#size", "path"], [(f.section, str(f.rows), show_bytes(f.size), f.path) for f in plan.files])
    say("")
    _show_figures(plan)


def _show_figures(plan: JobPlan) -> None:
    spec = plan.spec
    print_fields(
        [
            ("adapter", str(spec.adapter)),
            ("rounds", str(spec.federation.rounds) if spec.federation else None),
            ("training rows", None if plan.training_rows is None else str(plan.training_rows)),
            ("held-out rows", None if plan.held_out_rows is None else str(plan.held_out_rows)),
            ("steps", _show_steps(plan)),
            ("to upload", show_bytes(plan.upload_bytes)),
        ]
    )


def _show_steps(plan: JobPlan) -> str | None:
    spec = plan.spec
    contents = f"of {spec.micro_batch_size * spec.accumulation_steps} {'packed sequences' if spec.sample_packing else 'rows'} each"
    if plan.total_steps is not None:
        return f"{plan.total_steps}, {contents}"
    return f"as many as the rows' tokens fill, {contents}" if spec.sample_packing else None
