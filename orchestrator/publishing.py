"""The end of a good attempt: the version's row, the job's success and its event, in one transaction."""

from __future__ import annotations

from sqlalchemy import Connection

from hub import catalog
from hub.description import describe
from hub.objects import ObjectStore
from hub.publication import Publication
from hub.validate import check_version
from infra.database import writing
from orchestrator import ledger
from orchestrator.ledger import federations
from orchestrator.result_check import check_result
from orchestrator.services import OrchestratorServices
from wegeft.contracts.adapter import FileEntry
from wegeft.contracts.conversion_spec import ConversionSpec
from wegeft.contracts.errors import InvalidRequest, Problem, ResultMismatch, StaleLease
from wegeft.contracts.job import JobSpec
from wegeft.contracts.job_kinds import read_spec
from wegeft.contracts.training import PublishedVersion, TrainingResult


def check_blobs(store: ObjectStore, files: tuple[FileEntry, ...], delivered: frozenset[str]) -> None:
    """Return where the job has delivered all files in the announced size; raise :class:`InvalidRequest` with all that it has not."""
    problems = [problem for entry in files if (problem := _missing(store, entry, delivered))]
    if problems:
        raise InvalidRequest("the files are not all stored", problems=problems)


def _missing(store: ObjectStore, entry: FileEntry, delivered: frozenset[str]) -> Problem | None:
    # What others have stored is told apart from nothing by nobody who knows its digest alone.
    size = store.has(entry.digest) if entry.digest in delivered else None
    if size is None:
        return Problem(path=entry.path, message="its bytes were not uploaded for this job", value=entry.digest, hint="upload them first")
    if size != entry.size:
        return Problem(path=entry.path, message="its size differs", value=str(entry.size), hint=f"the store has {size} bytes")
    return None


def publish_result(services: OrchestratorServices, lease: ledger.Lease, result: TrainingResult) -> PublishedVersion:
    """Publish what an attempt has made and end its job; the same result again returns the same version.

    Nothing is changed where the files are no adapter, not delivered for this job or not the adapter that it asked for
    (:class:`InvalidInput`), or the attempt is stale (:class:`StaleLease`).
    """
    with writing(services.engine) as connection:
        try:
            # Renewed now, because reading every byte may take a while.
            row = ledger.contact(connection, lease, services.clock(), services.limits.lease_seconds)
            delivered = ledger.find_delivered(connection, lease, (entry.digest for entry in result.files))
        except StaleLease as error:
            return published_before(connection, lease, error)
    spec = _training_in(row.spec)
    check_blobs(services.store, result.files, delivered)
    facts = check_version(services.store, result.files)
    check_result(spec, result, facts)
    publication = Publication(
        adapter=spec.adapter,
        files=result.files,
        source=f"job:{lease.job_id}",
        base_model=result.base_model,
        method=facts.method,
        rank=facts.rank,
        created_by=row.owner,
        metrics=result.metrics,
        visibility=spec.output.visibility,
        measured_on=_measured_on(spec),
        description=describe(services.store, result.files),
    )
    with writing(services.engine) as connection:
        try:
            ledger.hold(connection, lease)
        except StaleLease as error:
            return published_before(connection, lease, error)
        return _commit(services, connection, lease, publication, spec.output.aliases)


def _training_in(text: str) -> JobSpec:
    spec = read_spec(text)
    if isinstance(spec, ConversionSpec):
        raise ResultMismatch("the job converts a version, and this is the result of training", path="files")
    return spec


def _measured_on(spec: JobSpec) -> str | None:
    """Return the digest of the data set that held-out rows are from; None where there are several."""
    sources = {dataset.path for dataset in (spec.test_datasets or spec.datasets) if dataset.is_uploaded}
    return sources.pop() if len(sources) == 1 else None


def published_before(connection: Connection, lease: ledger.Lease, error: StaleLease) -> PublishedVersion:
    """Return what a copy of this very report has published; raise ``error`` where there is none."""
    published = ledger.was_published(connection, lease)
    if published is None:
        raise error
    return published


def _commit(
    services: OrchestratorServices, connection: Connection, lease: ledger.Lease, publication: Publication, aliases: tuple[str, ...]
) -> PublishedVersion:
    now = services.clock()
    published = catalog.publish(connection, publication, now, services.signer)
    for alias in catalog.point_open_aliases(connection, publication.adapter, aliases, published.version, now):
        federations.tell(connection, lease.job_id, f"{alias} is protected and stays where it is: an admin moves it", now)
    ledger.succeed(connection, lease, published, now)
    return published
