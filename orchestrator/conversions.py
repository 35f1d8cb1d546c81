"""Conversions of published versions: letting one in, and attaching what it has made, by the same gate as a person's."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError
from sqlalchemy import Connection

from hub import catalog
from hub.comparison import read_config
from hub.formats.gate import Candidate, check_format, check_generators
from hub.formats.shelf import find_formats, sign
from infra import audit
from infra.database import reading, writing
from infra.principals import Principal
from orchestrator import ledger
from orchestrator.admission import check_conversion
from orchestrator.ids import ENTROPY_BYTES, make_job_id
from orchestrator.publishing import check_blobs, published_before
from orchestrator.services import OrchestratorServices
from wegeft.contracts.adapter import CONFIG_FILE, JOB_FILE, WEIGHTS_FILE, AdapterRef, VersionView
from wegeft.contracts.base_model_name import is_hub_id, revision_of, unpinned_name
from wegeft.contracts.conversion import ConversionAnswer, ConversionRequest, ConversionResult
from wegeft.contracts.conversion_spec import ConversionSpec
from wegeft.contracts.errors import InvalidRequest, Problem, ResultMismatch, StaleLease, VersionNotFound, shorten
from wegeft.contracts.formats import AttachedFormat, DerivedFormat, FormatAttachment, FormatView
from wegeft.contracts.job_kinds import read_spec
from wegeft.contracts.training import JobView, PublishedVersion

_READ_BY_WORKERS = (CONFIG_FILE, WEIGHTS_FILE, JOB_FILE)
"""The generators, and the job that names a classifier's labels."""


def convert(
    services: OrchestratorServices, version: VersionView, wanted: ConversionRequest, caller: Principal
) -> tuple[ConversionAnswer, bool]:
    """Return the formats that are attached already and the job that makes the others, and whether the job is new.

    Two equal requests at one moment get one job. Raises :class:`InvalidRequest` with every format that the version can never have,
    :class:`InvalidJob` and :class:`PolicyRefused` as for any job that names its base model so, and :class:`QuotaExceeded`.
    """
    views = find_formats(services.hub, version).formats
    _refuse_impossible(views, wanted)
    check_generators(services.store, version)
    attached = _attached((one for view in views for one in view.attached), wanted)
    if len(attached) == len(wanted.formats):
        return ConversionAnswer(ref=version.ref, attached=attached, job=None), False
    spec = _spec_of(services, version, wanted)
    check_conversion(spec, services.policy)
    with writing(services.engine) as connection:
        # Whoever asks for the same at this moment waits here, and then finds the job, or what it has made.
        _lock(connection, spec)
        attached = _attached(catalog.list_formats(connection, _version_of(connection, spec)), wanted)
        missing = tuple(name for name in wanted.formats if name not in {one.format for one in attached})
        rest = spec.model_copy(update={"formats": missing})
        job, is_new = _queue(connection, rest, caller, services.clock()) if missing else (None, False)
    return ConversionAnswer(ref=version.ref, attached=attached, job=job), is_new


def _refuse_impossible(views: Iterable[FormatView], wanted: ConversionRequest) -> None:
    problems = [
        Problem(path="formats", message="the version can never be had in this format", value=view.format, hint=view.how)
        for view in views
        if view.format in wanted.formats and view.state not in ("attached", "convertible")
    ]
    if problems:
        raise InvalidRequest("not all of these formats can be made", problems=problems)


def _attached(found: Iterable[AttachedFormat], wanted: ConversionRequest) -> tuple[AttachedFormat, ...]:
    """Return those of the wanted formats that are there, in the order of the request."""
    by_name = {one.format: one for one in found if one.dtype == wanted.dtype}
    return tuple(by_name[name] for name in wanted.formats if name in by_name)


def _queue(connection: Connection, spec: ConversionSpec, caller: Principal, now: datetime) -> tuple[JobView, bool]:
    known = _under_way(connection, spec, now)
    if known is not None:
        return known, False
    catalog.check_room(connection, spec.adapter, versions=0)
    job_id = make_job_id(now, secrets.token_bytes(ENTROPY_BYTES))
    view, _ = ledger.add(connection, ledger.NewJob(id=job_id, owner=caller.name, token_id=caller.token_id, spec=spec), now)
    if ledger.hold_data(connection, job_id, spec):
        raise VersionNotFound("the version's bytes are not kept any more", path=spec.ref)
    audit.note(connection, "format.convert", spec.ref, now, job=job_id, formats=[*spec.formats], dtype=spec.dtype)
    return view, True


def _spec_of(services: OrchestratorServices, version: VersionView, wanted: ConversionRequest) -> ConversionSpec:
    named = read_config(services.store, version).get("base_model_name_or_path")
    identity = version.base_model
    # A file's identity tells its name and not its folder, which the adapter's own configuration does.
    name = named if isinstance(named, str) and named and not is_hub_id(unpinned_name(identity)) else unpinned_name(identity)
    try:
        return ConversionSpec(
            ref=version.ref,
            manifest_digest=version.manifest_digest,
            files=tuple(entry for entry in version.manifest.files if entry.path in _READ_BY_WORKERS),
            base_model=name,
            base_model_revision=revision_of(identity),
            base_identity=identity,
            formats=wanted.formats,
            dtype=wanted.dtype,
            priority=wanted.priority,
        )
    except ValidationError as error:
        raise InvalidRequest("a worker cannot look for the version's base model", path="base_model", value=shorten(name, 200)) from error


def _under_way(connection: Connection, spec: ConversionSpec, now: datetime) -> JobView | None:
    """Return a conversion that makes at least this."""
    for job in ledger.list_conversions(connection, spec.adapter, spec.manifest_digest, now):
        theirs = job.spec
        if isinstance(theirs, ConversionSpec) and theirs.dtype == spec.dtype and set(theirs.formats) >= set(spec.formats):
            return job
    return None


def attach_result(services: OrchestratorServices, lease: ledger.Lease, result: ConversionResult) -> PublishedVersion:
    """Attach every format that an attempt has made and end its job, in one transaction; the same result again gets the same answer.

    Nothing is changed where the formats are not those that the job was to make (:class:`ResultMismatch`), are refused by the gate
    (:class:`InvalidInput`), or the version has gone (:class:`NotFound`); raises :class:`StaleLease` for a stale attempt.
    """
    with writing(services.engine) as connection:
        try:
            # Renewed now, because the gate may take a while.
            row = ledger.contact(connection, lease, services.clock(), services.limits.lease_seconds)
        except StaleLease as error:
            return published_before(connection, lease, error)
        files = [entry for one in result.formats for entry in one.attachment.files]
        delivered = ledger.find_delivered(connection, lease, (entry.digest for entry in files))
    spec = _conversion_in(row.spec)
    _check_is_asked(spec, result)
    check_blobs(services.store, tuple(files), delivered)
    made = {one.format: one.attachment for one in result.formats}
    with reading(services.engine) as connection:
        version = _version_of(connection, spec)
    for name, attachment in made.items():
        check_format(services.store, Candidate(version=version, format=name, dtype=spec.dtype, attachment=attachment))
    with writing(services.engine) as connection:
        try:
            ledger.hold(connection, lease)
        except StaleLease as error:
            return published_before(connection, lease, error)
        return _commit(services, connection, _Ending(lease=lease, spec=spec, made=made, owner=row.owner))


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """What an attempt has made, checked."""

    lease: ledger.Lease
    spec: ConversionSpec
    made: Mapping[DerivedFormat, FormatAttachment]
    owner: str


def _commit(services: OrchestratorServices, connection: Connection, ending: _Ending) -> PublishedVersion:
    now, spec = services.clock(), ending.spec
    _lock(connection, spec)
    version = _version_of(connection, spec)  # it may have been deleted meanwhile
    stamp = (ending.owner, now, now + timedelta(seconds=services.hub.format_keep_seconds))
    for name, attachment in ending.made.items():
        shelf = (name, spec.dtype)
        catalog.attach_format(connection, version, shelf, attachment, stamp, sign(services.signer, version, shelf, attachment))
    published = PublishedVersion(adapter=version.adapter, version=version.version)
    ledger.succeed(connection, ending.lease, published, now)
    return published


def _conversion_in(text: str) -> ConversionSpec:
    spec = read_spec(text)
    if not isinstance(spec, ConversionSpec):
        raise ResultMismatch("the job trains an adapter, and this is the result of a conversion", path="formats")
    return spec


def _check_is_asked(spec: ConversionSpec, result: ConversionResult) -> None:
    problems = list(_differences(spec, result))
    if problems:
        raise ResultMismatch(problems=problems)


def _differences(spec: ConversionSpec, result: ConversionResult) -> Iterator[Problem]:
    made = [one.format for one in result.formats]
    if sorted(made) != sorted(spec.formats):
        hint = f"expected {', '.join(spec.formats)}, each once"
        yield Problem(path="formats", message="differs from what the job asked for", value=", ".join(made), hint=hint)


def _lock(connection: Connection, spec: ConversionSpec) -> None:
    catalog.lock_latest(connection, spec.adapter)


def _version_of(connection: Connection, spec: ConversionSpec) -> VersionView:
    """Return the version that the job is of; raise :class:`NotFound` where it has gone, or another one has its name now."""
    version = catalog.resolve(connection, AdapterRef.parse(spec.ref))
    if version.manifest_digest != spec.manifest_digest:
        raise VersionNotFound("the version that was to be converted is gone", path=spec.ref, value=spec.manifest_digest)
    return version
