"""How versions come into the catalog."""

from __future__ import annotations

from datetime import datetime
from typing import Any, get_args

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from hub.catalog.evaluations import Measured, record_measured
from hub.catalog.holds import hold, note_sizes, version_of
from hub.catalog.lineage import record_parents
from hub.catalog.listings import list_newest
from hub.catalog.namespaces import starts_private
from hub.catalog.quotas import enforce
from hub.catalog.repositories import is_made
from hub.catalog.signatures import add_signature
from hub.catalog.staged import release
from hub.catalog.tables import ADAPTERS, VERSIONS, key_of, upsert
from hub.publication import Publication
from hub.signing import Signer
from infra import audit
from wegeft.contracts.adapter import Manifest, digest_of
from wegeft.contracts.bundles import claim_of, signature_statement
from wegeft.contracts.errors import Conflict, InvalidRequest, Problem
from wegeft.contracts.signing_keys import Algorithm
from wegeft.contracts.training import PublishedVersion


def publish(connection: Connection, publication: Publication, now: datetime, signer: Signer | None = None) -> PublishedVersion:
    """Add a version under the next number, in the caller's transaction; publishing a source again returns the version it made.

    Creates the adapter where need be, keeps the version's bytes for ever, and signs it in the same transaction; without a ``signer`` that
    is left for when somebody asks. Raises :class:`Conflict` where the source has published to another adapter, :class:`InvalidRequest`
    where bytes have been collected that were stored before, and :class:`QuotaExceeded` where the namespace has no room.
    """
    adapter = _lock_adapter(connection, publication, now)
    name = f"{adapter.namespace}/{adapter.name}"
    made = connection.execute(select(VERSIONS.c.adapter_id, VERSIONS.c.number).where(VERSIONS.c.source == publication.source)).one_or_none()
    if made is not None and made.adapter_id != adapter.id:
        raise Conflict("this source has published to another adapter", path="source", value=publication.source)
    if made is not None:
        return PublishedVersion(adapter=name, version=made.number)
    _hold_files(connection, publication)
    number: int = adapter.next_number
    try:
        added = insert(VERSIONS).values(adapter_id=adapter.id, number=number, **_version_row(publication, now))
        version_id: int = connection.execute(added.returning(VERSIONS.c.id)).scalar_one()
    except IntegrityError as error:
        raise Conflict("this source is being published to another adapter", path="source", value=publication.source) from error
    grown = {"latest_number": number, "next_number": number + 1, "updated_at": now}
    connection.execute(update(ADAPTERS).where(ADAPTERS.c.id == adapter.id).values(grown))
    enforce(connection, adapter.namespace)
    release(connection, publication.created_by, [entry.digest for entry in publication.files])
    list_newest(connection, adapter, version_id, publication)
    published = PublishedVersion(adapter=name, version=number)
    measured = Measured(metrics=publication.metrics, by=publication.created_by, dataset_digest=publication.measured_on)
    record_measured(connection, version_id, measured, now)
    record_parents(connection, version_id, publication.source, publication.started_from, publication.edited)
    if signer is not None:
        _sign(connection, (version_id, published), publication.manifest(now), signer, now)
    facts = {"source": publication.source, "created_by": publication.created_by, "is_private": adapter.is_private}
    audit.note(connection, "version.publish", f"{name}@{number}", now, **facts)
    return published


def _sign(connection: Connection, version: tuple[int, PublishedVersion], manifest: Manifest, signer: Signer, now: datetime) -> None:
    version_id, published = version
    claim = claim_of(published.adapter, published.version, digest_of(manifest.to_bytes()))
    statement = signature_statement(claim, manifest.files)
    for algorithm in get_args(Algorithm):
        add_signature(connection, version_id, algorithm, signer.sign(statement, algorithm), now)


def _hold_files(connection: Connection, publication: Publication) -> None:
    missing = hold(connection, version_of(publication.source), [entry.digest for entry in publication.files], None)
    if missing:
        gone = [entry for entry in publication.files if entry.digest in missing]
        problems = [
            Problem(path=entry.path, message="its bytes are not kept any more", value=entry.digest, hint="upload them again")
            for entry in gone
        ]
        raise InvalidRequest("the files are not all stored", problems=problems)
    note_sizes(connection, {entry.digest: entry.size for entry in publication.files})


def _lock_adapter(connection: Connection, publication: Publication, now: datetime) -> Row[Any]:
    """Return the adapter's row, made where need be, and hold it until the transaction ends."""
    adapter = publication.adapter
    row = {"key": key_of(adapter), "namespace": adapter.namespace, "name": adapter.name, "latest_number": 0, "next_number": 1}
    is_private = starts_private(connection, adapter.namespace, publication.visibility)
    added = upsert(connection, ADAPTERS).values({**row, "is_private": is_private, "created_at": now, "updated_at": now})
    locked = added.on_conflict_do_update(index_elements=[ADAPTERS.c.key], set_={"key": ADAPTERS.c.key})
    found = connection.execute(locked.returning(*ADAPTERS.c)).one()
    if found.latest_number or is_made(connection, found.id):
        return found
    # A row without a version is new, or of an adapter that was deleted: who saw that one and how it was written counts no more.
    anew = {"namespace": adapter.namespace, "name": adapter.name, "is_private": is_private, "created_at": now}
    return connection.execute(update(ADAPTERS).where(ADAPTERS.c.id == found.id).values(anew).returning(*ADAPTERS.c)).one()


def _version_row(publication: Publication, now: datetime) -> dict[str, Any]:
    manifest = publication.manifest(now).to_bytes()
    return {
        "source": publication.source,
        "manifest": manifest.decode(),
        "manifest_digest": digest_of(manifest),
        "base_model": publication.base_model,
        "method": publication.method,
        "rank": publication.rank,
        "size": publication.size,
        "metrics": dict(publication.metrics),
        "created_at": now,
        "created_by": publication.created_by,
    }
