"""``wgctl serve``: the composition root, where settings, clock, database, store, pool and HTTP come together."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import rich_click as click

from cli.home import KEY_BYTES, Home, ServiceRecord
from cli.listening import ended_by_signals, listening, run_http, url_of
from cli.local_accounts import keep_token
from cli.options import example, json_option
from cli.output import print_json_line, say
from infra.settings import Settings, load_settings
from infra.telemetry import configure_logging

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI
    from prometheus_client import CollectorRegistry
    from sqlalchemy import Engine

    from hub.objects import ObjectStore
    from hub.signing import Signer
    from infra.auth import Guard
    from orchestrator.admission import Policy
    from orchestrator.jobs import Limits
    from orchestrator.scheduler import Pool
    from orchestrator.services import OrchestratorServices

Part = Literal["hub", "orchestrator"]


@click.command(epilog=example("wgctl serve --host 0.0.0.0 --port 8400\nwgctl serve --only hub"))
@click.option("--host", help="Address to listen on; before WEGEFT_HOST.")
@click.option("--port", type=int, help="TCP port to listen on; before WEGEFT_PORT.")
@click.option("--pool", type=click.Choice(["ray", "inline"]), help="Where jobs run; before WEGEFT_POOL.")
@click.option("--only", type=click.Choice(["hub", "orchestrator"]), help="Serve one part alone; by default both.")
@json_option
def serve(host: str | None, port: int | None, pool: str | None, only: Part | None, is_json: bool) -> None:
    """Run the service as the settings say, in the foreground.

    It ends at SIGTERM or Ctrl-C. The first start makes the database's tables, and an administrator's token that is kept in the home
    folder.
    """
    run_service(load_settings(host=host, port=port, pool=pool), only=only, is_json=is_json)


@click.command(hidden=True)
@click.option("--ray-address", help="Cluster to drive; a local one by default.")
def gateway(ray_address: str | None) -> None:
    """Drive Ray for the service that started it: orders on standard input, ends on standard output, as JSON lines."""
    from orchestrator.ray_gateway import run_gateway
    from workers.pool import RayPool

    folder = Home(load_settings().home).folder / "ray"
    run_gateway(lambda: RayPool(address=ray_address, folder=folder))


def run_service(settings: Settings, *, only: Part | None = None, is_json: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; raise where the service cannot start."""
    os.umask(0o077)
    home = Home(settings.home)
    home.prepare()
    with home.locked(), ended_by_signals(), listening(settings.host, settings.port, _last_port(home)) as listener:
        configure_logging(settings.log_format, settings.log_level)
        server = url_of(settings.host, listener)
        with _assembled(settings, home, server, only) as app:
            run_http(app, listener, lambda: _announce(home, server, settings, is_json=is_json), settings.least_download_rate)


def _last_port(home: Home) -> int:
    """Return the port of last time: whoever follows a job through a restart asks there again."""
    record = home.read_record()
    port = record.server.rpartition(":")[2] if record else ""
    return int(port) if port.isdigit() else 0


def _announce(home: Home, server: str, settings: Settings, *, is_json: bool) -> None:
    record = ServiceRecord(pid=os.getpid(), server=server, pool=settings.pool, version=version("wegeft-hub"), since=now())
    home.write_record(record)
    if is_json:
        print_json_line(record)
    else:
        say(f"serving at {server}; an administrator's token is in {home.token_file}")
        sys.stdout.flush()


def now() -> datetime:
    """Return the time; the one clock of the service."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What every router stands on."""

    engine: Engine
    store: ObjectStore
    guard: Guard
    settings: Settings
    registry: CollectorRegistry
    jobs: OrchestratorServices | None
    """None where the hub is served alone."""
    signer: Signer


@contextmanager
def _assembled(settings: Settings, home: Home, server: str, only: Part | None) -> Iterator[FastAPI]:
    """Give the application, its scheduler ticking; stop it and close everything at the end."""
    from prometheus_client import CollectorRegistry

    from cli.signing_key import find_signer
    from hub import catalog
    from hub.forgetting import forgetting_words
    from hub.provenance import publish_keys
    from infra.auth import Guard
    from infra.database import make_engine, upgrade
    from orchestrator import ledger

    engine = make_engine(settings.database)
    try:
        upgrade(engine)
        keep_token(engine, home, now())
        store = _open_store(settings)
        signer = find_signer(settings, home)
        publish_keys(engine, signer, now())
        jobs = None if only == "hub" else _make_orchestrator(settings, home, engine, store, signer)
        parts = _Parts(
            engine=engine,
            store=store,
            guard=Guard(engine=engine, clock=now, checks=(catalog.check_path, ledger.check_path)),
            settings=settings,
            registry=CollectorRegistry(),
            jobs=jobs,
            signer=signer,
        )
        with _scheduling(parts, home, settings.public_url or server), _federating(jobs), forgetting_words(engine, settings.collect_seconds):
            yield _make_app(parts, only, server)
    finally:
        engine.dispose()


@contextmanager
def _scheduling(parts: _Parts, home: Home, server: str) -> Iterator[None]:
    """Give queued jobs to the pool meanwhile, where jobs are served; at the end kill what runs, its jobs back in the queue."""
    from orchestrator.scheduler import Scheduler, SchedulerThread

    if parts.jobs is None:
        yield
        return
    pool = _make_pool(parts.settings, home)
    scheduler = Scheduler(parts.engine, pool, _limits(parts.settings), server, _make_upkeep(parts))
    thread = SchedulerThread(scheduler, now)
    thread.start()
    try:
        yield
    finally:
        thread.close()


def _make_upkeep(parts: _Parts) -> Callable[[datetime], None] | None:
    from hub.collection import Collector
    from orchestrator.metrics import CollectionTally
    from orchestrator.upkeep import Upkeep, UpkeepTimes

    settings = parts.settings
    if not settings.collect_seconds:
        return None
    times = UpkeepTimes(interval_seconds=settings.collect_seconds, keep_seconds=settings.keep_seconds)
    collector = Collector(engine=parts.engine, store=parts.store)
    return Upkeep(parts.engine, collector, times, CollectionTally(parts.registry).count).tick


@contextmanager
def _federating(services: OrchestratorServices | None) -> Iterator[None]:
    """Drive federated jobs meanwhile, where jobs are served."""
    from orchestrator.federations import Federations, FederationsThread

    if services is None:
        yield
        return
    thread = FederationsThread(Federations(services), services)
    thread.start()
    try:
        yield
    finally:
        thread.close()


def _make_orchestrator(settings: Settings, home: Home, engine: Engine, store: ObjectStore, signer: Signer) -> OrchestratorServices:
    from orchestrator.services import OrchestratorServices

    return OrchestratorServices(
        engine=engine,
        store=store,
        clock=now,
        policy=_policy(settings),
        limits=_limits(settings),
        keep_seconds=settings.keep_seconds,
        federation_key=find_federation_key(settings, home),
        signer=signer,
    )


def find_federation_key(settings: Settings, home: Home) -> bytes:
    """Return the key that signs receipts: as set, or as kept in the home, where it is made the first time."""
    if settings.federation_key is not None:
        return bytes.fromhex(settings.federation_key.get_secret_value())
    key = home.read_federation_key()
    if key is None:
        key = secrets.token_bytes(KEY_BYTES)
        home.write_federation_key(key)
    return key


def _make_pool(settings: Settings, home: Home) -> Pool:
    if settings.pool == "inline":
        from workers.pool import InlinePool

        return InlinePool()
    from orchestrator.ray_gateway import GatewayPool

    command = [sys.executable, "-P", "-m", "cli.main", "gateway"]
    return GatewayPool([*command, "--ray-address", settings.ray_address] if settings.ray_address else command, home.gateway_log_file)


def _limits(settings: Settings) -> Limits:
    from orchestrator.jobs import Limits

    return Limits(
        max_concurrent_jobs=settings.jobs_at_once, lease_seconds=settings.lease_seconds, heartbeat_seconds=settings.heartbeat_seconds
    )


def _policy(settings: Settings) -> Policy:
    from orchestrator.admission import Policy

    return Policy(
        allow_local_models=settings.allow_local_models,
        allow_remote_code=settings.allow_remote_code,
        max_blob_bytes=settings.max_upload_bytes,
        is_private_by_default=settings.new_adapters == "private",
    )


def _open_store(settings: Settings) -> ObjectStore:
    from hub.s3 import S3Access, open_store

    access = None
    if settings.s3_access_key and settings.s3_secret_key:
        access = S3Access(
            endpoint=settings.s3_endpoint,
            public_endpoint=settings.s3_public_endpoint,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key.get_secret_value(),
            region=settings.s3_region,
        )
    return open_store(settings.store_url, access)


def _make_app(parts: _Parts, only: Part | None, server: str) -> FastAPI:
    from cli.pages import make_frame, make_pages
    from infra.gate import Gate, loopback_hosts
    from infra.http import create_app, show_errors
    from infra.known_tokens import KnownTokens
    from orchestrator.attempts_api import check_attempt

    gate = Gate(
        hosts=loopback_hosts(parts.settings.host, (server, parts.settings.public_url or server)),
        knows=KnownTokens(parts.engine, now, check_attempt if only != "hub" else None),
    )
    checks = {"database": lambda: _check_database(parts.engine), "store": lambda: _check_store(parts.store)}
    frame = make_frame(now, only)
    app = create_app(
        [*_routers(parts, only), *make_pages(frame, only)],
        title="WeGeFT hub",
        version=version("wegeft-hub"),
        checks=checks,
        registry=_with_gauges(parts, only),
        gate=gate,
    )
    show_errors(app, frame.error_page)
    return app


def _with_gauges(parts: _Parts, only: Part | None) -> CollectorRegistry:
    from orchestrator.metrics import JobGauges

    if only != "hub":
        parts.registry.register(JobGauges(parts.engine))
    return parts.registry


def _check_database(engine: Engine) -> None:
    from infra.database import reading

    with reading(engine) as connection:
        connection.exec_driver_sql("SELECT 1")


def _check_store(store: ObjectStore) -> None:
    store.has(f"sha256:{'0' * 64}")


def _routers(parts: _Parts, only: Part | None) -> list[APIRouter]:
    import hub.api
    import orchestrator.api
    from hub.recent_blobs import RecentBlobs
    from hub.services import HubServices
    from infra import accounts

    routers = [accounts.make_router(parts.engine, parts.guard, now)]
    if only != "orchestrator":
        services = HubServices(
            engine=parts.engine,
            store=parts.store,
            clock=now,
            max_blob_bytes=parts.settings.max_upload_bytes,
            max_staged_bytes=parts.settings.max_staged_bytes,
            downloads_at_once=parts.settings.downloads_at_once,
            keep_seconds=parts.settings.keep_seconds,
            is_private_by_default=parts.settings.new_adapters == "private",
            signer=parts.signer,
            direct_from_bytes=parts.settings.direct_from,
            recent=RecentBlobs(parts.settings.recent_bytes),
        )
        routers.append(hub.api.make_router(services, parts.guard))
    if parts.jobs is not None:
        routers.append(orchestrator.api.make_router(parts.jobs, parts.guard))
    return routers
