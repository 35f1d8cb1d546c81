"""The real application around the orchestrator's API, in process or over a real socket, and a worker's side of it."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from safetensors import SafetensorError
from safetensors.numpy import load, save
from sqlalchemy import Engine
from starlette.types import ASGIApp

import hub.api
from hub import catalog
from hub.objects import MemoryStore, ObjectStore
from hub.services import HubServices
from hub.signing import Signer
from infra import accounts
from infra.auth import Guard, create_token
from infra.database import writing
from infra.http import create_app
from orchestrator import api
from orchestrator.admission import Policy
from orchestrator.jobs import Limits
from orchestrator.services import OrchestratorServices
from tests.lending import LentApp, lend
from tests.orchestrator.samples import DATASET
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, FileEntry, digest_of
from wegeft.contracts.training import TrainingResult


def now() -> datetime:
    """The real time: leases and tokens of these tests are real ones."""
    return datetime.now(UTC)


@dataclass
class Site:
    """An application with its parts and a token for each role."""

    engine: Engine
    store: ObjectStore = field(default_factory=MemoryStore)
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)

    signer: Signer | None = None

    def __post_init__(self) -> None:
        self.services = OrchestratorServices(engine=self.engine, store=self.store, clock=now, policy=self.policy, limits=self.limits)
        with writing(self.engine) as connection:
            self.tokens = {role: create_token(connection, f"the {role}er", role, now())[1] for role in ("read", "write", "admin")}
        self.upload(DATASET)

    def app(self) -> LentApp:
        """The application over the parts that the site has now."""
        return lend(site_app, self.services, HubServices(engine=self.engine, store=self.store, clock=now, signer=self.signer))

    def bearer(self, role: str = "write") -> dict[str, str]:
        """The header that carries a role's token."""
        return {"Authorization": f"Bearer {self.tokens[role]}"}

    def put(self, content: bytes) -> str:
        """Store bytes as somebody's who is not asked about; return their digest."""
        self.services.intake.store_bytes(digest_of(content), io.BytesIO(content))
        return digest_of(content)

    def upload(self, content: bytes) -> str:
        """Store bytes as those of every token that may write; return their digest."""
        digest = self.put(content)
        with writing(self.engine) as connection:
            for role in ("write", "admin"):
                token_id = self.tokens[role].split("_")[1]
                assert self.services.intake.own(connection, digest, len(content), catalog.upload_of(token_id))
        return digest


def site_app(services: OrchestratorServices, hub_services: HubServices) -> FastAPI:
    """The application of both, built anew."""
    guard = Guard(engine=hub_services.engine, clock=now)
    routers = [
        accounts.make_router(hub_services.engine, guard, now),
        api.make_router(services, guard),
        hub.api.make_router(hub_services, guard),
    ]
    return create_app(routers, title="test", version="1")


def plain_spec(**fields: Any) -> dict[str, Any]:
    """A right job as it is sent."""
    dataset = {"path": digest_of(DATASET), "file_format": "jsonl", "type": "prompt_completion"}
    return {"name": "sums", "base_model": "org/model", "rank": 2, "datasets": [dataset], **fields}


def adapter_files(rank: int = 2, seed: int = 0) -> dict[str, bytes]:
    """The files of a small adapter that the hub accepts."""
    config = {
        "peft_type": "WEGEFT",
        "r": rank,
        "wegeft_alpha": 4.0,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "org/model",
    }
    random = np.random.default_rng(seed)
    tensors = {
        "base_model.wegeft_generators.q_proj.phi": random.normal(size=(8, rank)).astype(np.float32),
        "base_model.wegeft_generators.q_proj.psi": random.normal(size=(rank, 8)).astype(np.float32),
    }
    return {CONFIG_FILE: json.dumps(config).encode(), WEIGHTS_FILE: save(tensors)}


def result_of(files: dict[str, bytes], **metrics: float) -> TrainingResult:
    """The report of an attempt that has made these files."""
    entries = tuple(FileEntry(path=path, digest=digest_of(content), size=len(content)) for path, content in files.items())
    trained = count_numbers(files.get(WEIGHTS_FILE, b""))
    return TrainingResult(files=entries, metrics=metrics or {"eval_loss": 0.5}, base_model="org/model@abc", trainable_parameters=trained)


def count_numbers(weights: bytes) -> int:
    """How many numbers a file of weights holds; one where it is no such file."""
    try:
        return sum(tensor.size for tensor in load(weights).values())
    except SafetensorError:
        return 1


@contextmanager
def listening(app: ASGIApp, port: int = 0) -> Iterator[str]:
    """Serve ``app`` on a free port of this machine, in a thread; give its URL."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1, lifespan="off")
    server = uvicorn.Server(config)
    is_up = threading.Event()
    startup = server.startup

    async def noting_startup(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        is_up.set()

    server.startup = noting_startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        assert is_up.wait(30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()
