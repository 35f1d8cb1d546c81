"""``wgctl jobs``: list, show, follow, cancel and wait for jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich_click as click

from cli.connection import connect
from cli.narration import narrator
from cli.options import example, json_option
from cli.output import note, print_fields, print_json, print_json_line, print_table, say, show_age, show_duration, show_time
from wegeft.client import Client
from wegeft.contracts.conversion_spec import ConversionSpec
from wegeft.contracts.errors import JobCancelled, JobFailed, JobPending, ServiceTimeout, ServiceUnreachable
from wegeft.contracts.job_tasks import metrics_of, show_metric
from wegeft.contracts.training import EventRecord, JobPage, JobState, JobView


@click.group(no_args_is_help=True)
def jobs() -> None:
    """List, follow, cancel and wait for jobs."""


@jobs.command("ls", epilog=example("wgctl jobs ls --state running --label team=support\nwgctl jobs ls -q | xargs wgctl jobs wait"))
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only jobs in this state.")
@click.option("-l", "--label", metavar="KEY=VALUE", help="Only jobs with this label.")
@click.option("-n", "--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="Jobs to show at most, newest first.")
@click.option("--after", metavar="CURSOR", help="Go on behind an earlier page: its next_cursor.")
@click.option("-q", "--quiet", "is_quiet", is_flag=True, help="Print ids only.")
@json_option
def list_jobs(state: str | None, label: str | None, limit: int, after: str | None, is_quiet: bool, is_json: bool) -> None:
    """List jobs, newest first."""
    with connect() as client:
        page = client.jobs(state=JobState(state) if state else None, label=label, limit=limit, after=after)
    if is_json:
        print_json(page)
    elif is_quiet:
        for view in page.jobs:
            say(view.id)
    else:
        _show_page(page)


def _show_page(page: JobPage) -> None:
    if not page.jobs:
        note("no jobs")
        return
    rows = [(job.id, job.name, str(job.state), _progress(job), _outcome(job), show_age(job.created_at)) for job in page.jobs]
    print_table(["id", "name", "state", "#step", "result", "submitted"], rows)
    if page.next_cursor:
        note(f"there are more: --after {page.next_cursor}")


def _progress(job: JobView) -> str:
    return f"{job.step}/{job.total_steps}" if job.total_steps else "-"


def _outcome(job: JobView) -> str:
    if job.result:
        return job.result.ref
    return job.error.code if job.error else "-"


@jobs.command("show", epilog=example("wgctl jobs show JOB_ID"))
@click.argument("job_id")
@json_option
def show_job(job_id: str, is_json: bool) -> None:
    """Show all about one job."""
    with connect() as client:
        view = client.job(job_id)
        measured = None if is_json else _measured(client, view)
    if is_json:
        print_json(view)
    else:
        print_fields(_fields_of(view, measured))


def _measured(client: Client, job: JobView) -> str | None:
    """Return what was measured last of the held-out rows; None before anything was."""
    if isinstance(job.spec, ConversionSpec):
        return None
    names = ("eval_loss", "exact_match", *metrics_of(job.spec.task, job.spec.problem_type))
    last = {name: points[-1] for name in names if (points := client.metric(job.id, name))} if job.step or job.state.is_final else {}
    told = ", ".join(f"{name.replace('_', ' ')} {show_metric(name, point.value)}" for name, point in last.items())
    return f"{told}, at step {max(point.step for point in last.values())}" if last else None


def _fields_of(job: JobView, measured: str | None) -> list[tuple[str, str | None]]:
    took = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else None
    problems = "\n".join(str(problem) for problem in job.error.problems) if job.error else None
    return [
        ("id", job.id),
        ("name", job.name),
        ("state", str(job.state)),
        ("waiting for", job.waiting_for),
        ("result", job.result.ref if job.result else None),
        ("error", f"{job.error.code}: {job.error.detail}" if job.error else None),
        ("", problems if job.error and problems != job.error.detail else None),
        ("step", _progress(job)),
        ("measured", measured),
        ("attempt", str(job.attempt)),
        ("task", _task_of(job)),
        ("base model", job.spec.base_model),
        ("adapter", str(job.spec.adapter)),
        ("priority", str(job.priority)),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items())) or None),
        ("submitted", show_time(job.created_at)),
        ("started", show_time(job.started_at)),
        ("finished", show_time(job.finished_at)),
        ("took", None if took is None else show_duration(took)),
    ]


def _task_of(job: JobView) -> str:
    if isinstance(job.spec, ConversionSpec):
        return f"convert {job.spec.ref} to {', '.join(job.spec.formats)} of {job.spec.dtype}"
    return str(job.spec.task).replace("_", " ")


@jobs.command("logs", epilog=example("wgctl jobs logs -f JOB_ID\nwgctl jobs logs JOB_ID --json"))
@click.argument("job_id")
@click.option("-f", "--follow", "is_following", is_flag=True, help="Go on until the job has ended. Ctrl-C ends the looking, not the job.")
@click.option("--after", type=click.IntRange(0), default=0, metavar="NUMBER", help="Begin behind the event with this number.")
@json_option
def show_logs(job_id: str, is_following: bool, after: int, is_json: bool) -> None:
    """Print a job's log: progress, measurements, checkpoints and messages; with --json, one JSON document a line."""
    with connect() as client:
        if is_following:
            watch(client, job_id, after=after, is_json=is_json)
        else:
            with _teller(is_json=is_json) as tell:
                for record in _events_so_far(client, job_id, after):
                    tell(record)


def _events_so_far(client: Client, job_id: str, after: int) -> list[EventRecord]:
    found: list[EventRecord] = []
    while records := client.events(job_id, after=found[-1].sequence if found else after).records:
        found += records
    return found


@jobs.command("cancel", epilog=example("wgctl jobs cancel JOB_ID"))
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...")
@json_option
def cancel_jobs(job_ids: tuple[str, ...], is_json: bool) -> None:
    """Stop jobs; a running one ends within seconds. With --json, one document a line."""
    with connect() as client:
        for job_id in job_ids:
            view = client.cancel(job_id)
            if is_json:
                print_json_line(view)
            else:
                say(f"{view.id} {view.state}")


@jobs.command("wait", epilog=example("wgctl jobs wait JOB_ID --timeout 600"))
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Give up waiting after so long; the jobs go on.")
@json_option
def wait_for_jobs(job_ids: tuple[str, ...], timeout: float | None, is_json: bool) -> None:
    """Wait until jobs have ended, and exit as they did.

    Exit status 0: all succeeded; 1: one failed; 3: one was cancelled; 8: not ended in time. With --json, one document a line.
    """
    from time import monotonic

    end = None if timeout is None else monotonic() + timeout
    ended: list[JobView] = []
    with connect() as client:
        for job_id in job_ids:
            view = client.wait(job_id, None if end is None else max(0.0, end - monotonic()))
            ended.append(view)
            if is_json:
                print_json_line(view)
            else:
                say(f"{view.id} {view.state} {_outcome(view)}")
    for view in sorted(ended, key=lambda view: view.state != JobState.FAILED):
        end_like(view)


def end_like(view: JobView) -> None:
    """Return where a job succeeded; raise :class:`JobFailed` or :class:`JobCancelled` where it did not."""
    match view.state:
        case JobState.SUCCEEDED:
            return
        case JobState.CANCELLED:
            raise JobCancelled(f"job {view.id} was cancelled")
        case JobState.FAILED if view.error:
            problems = [problem for problem in view.error.problems if str(problem) != view.error.detail]
            raise JobFailed(f"job {view.id} failed: {view.error.code}: {view.error.detail}", problems=problems)
        case JobState.FAILED:
            raise JobFailed(f"job {view.id} failed")
        case _:
            raise JobPending(f"job {view.id} is {view.state}")


def follow_to_end(client: Client, job_id: str, *, is_quiet: bool) -> JobView:
    """Tell a job's log until it has ended, and return the job; after Ctrl-C it goes on, and the user learns how to look again."""
    if is_quiet:
        with _told_to_come_back(job_id):
            return client.wait(job_id)
    watch(client, job_id)
    view = client.job(job_id)
    if view.result:
        done = "attached to" if isinstance(view.spec, ConversionSpec) else "published"
        say(f"{done} {view.result.ref}", style="green")
    return view


def watch(client: Client, job_id: str, *, after: int = 0, is_json: bool = False) -> None:
    """Tell a job's log as it comes, until the job has ended."""
    with _told_to_come_back(job_id), _teller(is_json=is_json) as tell:
        for record in client.follow(job_id, after=after):
            tell(record)


@contextmanager
def _teller(*, is_json: bool) -> Iterator[Callable[[EventRecord], None]]:
    """Give what tells one event: to a script or to a person."""
    if is_json:
        yield print_json_line
        return
    with narrator() as told:
        yield told.tell


@contextmanager
def _told_to_come_back(job_id: str) -> Iterator[None]:
    """Say how to look again where looking ends before the job does: looking away is not cancelling."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"\nthe job goes on; look again with: wgctl jobs logs -f {job_id}")
        raise
    except (ServiceUnreachable, ServiceTimeout):
        note(f"the job is not lost; look again with: wgctl jobs logs -f {job_id}")
        raise
