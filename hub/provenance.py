"""What the hub vouches for: signatures and attestations of versions, and their family trees."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, Engine

from hub import catalog
from hub.attestation import base_config_digest, read_figures, training_predicate
from hub.comparison import read_config
from hub.services import HubServices
from hub.signing import Signer
from infra.database import reading, writing
from infra.principals import Principal
from wegeft.contracts.adapter import AdapterName, VersionView
from wegeft.contracts.bundles import BundleKind, VersionClaim, claim_of, signature_statement, training_statement
from wegeft.contracts.engines import EngineReport, engine_report
from wegeft.contracts.errors import NotFound
from wegeft.contracts.provenance import BaseModelPin, LineageView


def publish_keys(engine: Engine, signer: Signer, now: datetime) -> None:
    """Publish the keys that sign from now on, and retire those before them."""
    with writing(engine) as connection:
        catalog.register_keys(connection, signer.public_keys(now), now)


def find_bundle(services: HubServices, version: VersionView, kind: BundleKind) -> str:
    """Return a signed bundle of a version; what was published before the hub had a key is signed when it is first asked for.

    Raises :class:`NotFound` where the hub does not sign.
    """
    name, number = AdapterName.parse(version.adapter), version.version
    with reading(services.engine) as connection:
        bundle = catalog.find_signature(connection, name, number, kind)
    if bundle is not None:
        return bundle
    if services.signer is None:
        raise NotFound("this hub does not sign versions", path=version.ref)
    made = _make(services, services.signer, version, kind)
    with writing(services.engine) as connection:
        return _keep(connection, version, kind, made, services)


def _make(services: HubServices, signer: Signer, version: VersionView, kind: BundleKind) -> tuple[str, str]:
    claim = _claim(version)
    if kind != "attestation":
        return signer.sign(signature_statement(claim, version.manifest.files), kind)
    with reading(services.engine) as connection:
        version_id = catalog.find_version_id(connection, AdapterName.parse(version.adapter), version.version)
        ancestors, _ = catalog.find_relatives(connection, version_id, "ancestors")
    predicate = training_predicate(services.store, version, ancestors, signer.key_id)
    return signer.sign(training_statement(claim, version.manifest.files, predicate))


def _keep(connection: Connection, version: VersionView, kind: BundleKind, bundle: tuple[str, str], services: HubServices) -> str:
    name, number = AdapterName.parse(version.adapter), version.version
    catalog.add_signature(connection, catalog.find_version_id(connection, name, number), kind, bundle, services.clock())
    return catalog.find_signature(connection, name, number, kind) or bundle[0]


def _claim(version: VersionView) -> VersionClaim:
    return claim_of(version.adapter, version.version, version.manifest_digest)


def with_signature(services: HubServices, version: VersionView) -> VersionView:
    """Return the version with its signature, so that a pull needs no further question; without one where the hub does not sign."""
    if services.signer is None:
        return version
    return version.model_copy(update={"signature": find_bundle(services, version, "ed25519")})


def find_engines(services: HubServices, version: VersionView) -> EngineReport:
    """Return which engines load a version."""
    return engine_report(version.ref, version.method, read_config(services.store, version))


def find_lineage(services: HubServices, version: VersionView, reader: Principal) -> LineageView:
    """Return where a version comes from and what came of it, as far as ``reader`` may see it."""
    name, number = AdapterName.parse(version.adapter), version.version
    with reading(services.engine) as connection:
        version_id = catalog.find_version_id(connection, name, number)
        ancestors, is_cut_above = catalog.find_relatives(connection, version_id, "ancestors", reader)
        descendants, is_cut_below = catalog.find_relatives(connection, version_id, "descendants", reader)
    base, at, revision = version.base_model.rpartition("@")
    round_ = version.source.rpartition(":")[2]
    return LineageView(
        ref=version.ref,
        manifest_digest=version.manifest_digest,
        source=version.source,
        base_model=BaseModelPin(
            name=base if at else version.base_model,
            revision=revision if at else None,
            config_digest=base_config_digest(read_figures(services.store, version)),
        ),
        round=int(round_) if version.source.startswith("round:") and round_.isdecimal() else None,
        ancestors=ancestors,
        descendants=descendants,
        is_cut=is_cut_above or is_cut_below,
    )
