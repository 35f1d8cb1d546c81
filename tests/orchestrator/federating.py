"""A server of federations and scripted sites: real keys, real bytes, and training that is a random step."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from types import MappingProxyType
from typing import Any

import httpx2
import numpy as np
from fastapi import FastAPI
from sqlalchemy import Engine

import hub.api
from hub import catalog
from hub.objects import MemoryStore, ObjectStore
from hub.services import HubServices
from infra.auth import Guard, create_token
from infra.database import reading, writing
from infra.gate import Gate
from infra.http import create_app
from orchestrator import api, ledger
from orchestrator.federation_round import closing_of
from orchestrator.federations import Federations, FederationsThread
from orchestrator.ids import make_job_id
from orchestrator.jobs import Limits
from orchestrator.ledger import federations, round_views
from orchestrator.services import OrchestratorServices
from tests.http_clients import patient_client
from tests.lending import LentApp, lend
from tests.orchestrator.samples import at
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.enrolment import Enrolment, RoundView, enrolment_content
from wegeft.contracts.federation import Offer, SignedReceipt, SignedUpdate, Update
from wegeft.contracts.job import JobSpec, parse_spec
from wegeft.contracts.signatures import public_key_of, request_content, sign, upload_content
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.training import JobView
from wegeft.contracts.wire import write_update

RANK, WIDTHS = 2, {"q_proj": 6, "down_proj": 9}
SERVER_KEY = bytes(range(32))
API = "/api/v1"


def now() -> datetime:
    """The real time."""
    return datetime.now(UTC)


def start_files(seed: int = 0) -> tuple[bytes, bytes]:
    """The configuration and the weights of an untrained adapter: φ zero, ψ random."""
    config = {
        "peft_type": "WEGEFT",
        "r": RANK,
        "wegeft_alpha": 2.0 * RANK,
        "target_modules": ["q_proj", "down_proj"],
        "base_model_name_or_path": "org/model",
    }
    random = np.random.default_rng(seed)
    tensors = {}
    for group, width in WIDTHS.items():
        tensors[f"base_model.wegeft_generators.{group}.phi"] = np.zeros((width, RANK), dtype=np.float32)
        tensors[f"base_model.wegeft_generators.{group}.psi"] = random.normal(size=(RANK, width)).astype(np.float32)
    return json.dumps(config).encode(), write_tensors(tensors)


@dataclass
class Server:
    """An application that serves federations, and its parts."""

    engine: Engine
    store: ObjectStore = field(default_factory=MemoryStore)
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], datetime] = now
    token_ids: list[str] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)
    """Sizes of the bytes that every token has sent, by digest."""

    def __post_init__(self) -> None:
        self.services = OrchestratorServices(
            engine=self.engine, store=self.store, clock=self.clock, limits=self.limits, federation_key=SERVER_KEY
        )

    def publish(self, content: bytes) -> str:
        """Store bytes as if every token had sent them; return their digest."""
        digest = digest_of(content)
        self.services.intake.store_bytes(digest, io.BytesIO(content))
        self.shared[digest] = len(content)
        self._share(self.token_ids, [digest])
        return digest

    def _share(self, token_ids: Iterable[str], digests: Iterable[str]) -> None:
        with writing(self.engine) as connection:
            for token_id, digest in product(token_ids, digests):
                assert self.services.intake.own(connection, digest, self.shared[digest], catalog.upload_of(token_id))

    def make_token(self, role: str = "admin") -> str:
        with writing(self.engine) as connection:
            token = create_token(connection, f"the {role}er", role, now())[1]
        self.token_ids.append(token.split("_")[1])
        self._share(self.token_ids[-1:], self.shared)
        return token

    def app(self) -> LentApp:
        return lend(federations_app, self.services, HubServices(engine=self.engine, store=self.store, clock=now))

    def driver(self) -> Federations:
        return Federations(self.services)

    def thread(self) -> FederationsThread:
        return FederationsThread(self.driver(), self.services, tick_seconds=0.05)

    def spec(self, **section: Any) -> JobSpec:
        """A federated job that is right; its start is in the store."""
        return parse_spec(plain_spec(self, **section))

    def add(self, entropy: int = 1, **section: Any) -> str:
        """Queue a federated job under a fixed id, behind the API's back."""
        new = ledger.NewJob(id=make_job_id(at(0), entropy.to_bytes(10)), owner="ada", token_id="a" * 12, spec=self.spec(**section))
        with writing(self.engine) as connection:
            return ledger.add(connection, new, self.clock())[0].id

    def view(self, job_id: str) -> JobView:
        with reading(self.engine) as connection:
            return ledger.find(connection, job_id, self.clock())

    def rounds(self, job_id: str) -> list[RoundView]:
        """Every try at every round, oldest first."""
        with reading(self.engine) as connection:
            job = federations.find_federated(connection, job_id)
            return list(reversed(round_views.list_rounds(connection, job_id, closing_of(job.section), None, 1000)))

    def results(self, job_id: str) -> list[str]:
        """The digests of the committed states, round by round."""
        return [str(view.record.result) for view in self.rounds(job_id) if view.record and view.state == "committed"]


def federations_app(services: OrchestratorServices, hub_services: HubServices) -> FastAPI:
    """The application of both, built anew."""
    guard = Guard(engine=hub_services.engine, clock=now)
    routers = [api.make_router(services, guard), hub.api.make_router(hub_services, guard)]
    return create_app(routers, title="test", version="1", gate=Gate())


def plain_spec(server: Server, job: Mapping[str, Any] = MappingProxyType({}), **section: Any) -> dict[str, Any]:
    """A right federated job as it is sent, but for what its fields (``job``) and its section say; its start is put into the store."""
    config, weights = (server.publish(content) for content in start_files())
    start = {"config": config, "weights": weights}
    federation = {"rounds": 2, "min_sites": 2, "grace": "1s", "deadline": "60s", "start": start, **section}
    return {"name": "sums", "base_model": "org/model", "rank": RANK, "federation": federation, **job}


def key_of(index: int) -> bytes:
    return bytes([index + 1]) * 32


def train(offer: Offer, index: int, drift: float = 0.1, **fields: Any) -> tuple[SignedUpdate, bytes]:
    """What a site makes of an offer: the same for the same site, round and try."""
    random = np.random.default_rng([index, offer.round, offer.attempt])
    moved = {name: drift * random.standard_normal(form.shape) for name, form in sorted(offer.tensors.items())}
    content = write_update(moved, offer.wire)
    told = {
        "version": offer.version,
        "job_id": offer.job_id, "round": offer.round, "attempt": offer.attempt, "site": offer.site, "offer": offer.digest,
        "base_model": offer.base_model, "start": offer.start, "tensors": digest_of(content), "size": len(content), "examples": 10 + index,
        "steps": 3, "metrics": {"train_loss": 1.0 / offer.round},
    }  # fmt: skip
    update = Update.model_validate({**told, **fields})
    return SignedUpdate(update=update, signature=sign(key_of(index), update.to_bytes())), content


class FakeSite:
    """A site's side of the wire, by hand."""

    def __init__(self, url: str, index: int) -> None:
        self.index = index
        self.http = patient_client(base_url=url)
        self.job_id, self.pseudonym = "", ""

    def enrol(self, token: str, max_examples: int = 100) -> Enrolment:
        """Take up an invitation."""
        public_key = public_key_of(key_of(self.index))
        proof = sign(key_of(self.index), enrolment_content(token, public_key, max_examples))
        body = {"token": token, "public_key": public_key, "max_examples": max_examples, "proof": proof}
        answer = self.http.post(f"{API}/federation/enrolments", json=body)
        assert answer.status_code == 201, answer.text
        enrolment = Enrolment.model_validate_json(answer.content)
        self.job_id, self.pseudonym = enrolment.job_id, enrolment.site.pseudonym
        return enrolment

    def headers(self, method: str, path: str, body: bytes = b"", **override: str) -> dict[str, str]:
        """The headers that sign a request."""
        stamp, nonce = override.get("timestamp", now().isoformat()), override.get("nonce", secrets.token_hex(16))
        content = request_content(method, path, body, stamp, nonce)
        return {
            "Wegeft-Site": f"{self.job_id}/{self.pseudonym}",
            "Wegeft-Timestamp": stamp,
            "Wegeft-Nonce": nonce,
            "Wegeft-Signature": sign(key_of(self.index), content),
        }

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> httpx2.Response:
        """Send a signed request."""
        path = f"{API}/federation/{path}"
        kind = {"Content-Type": "application/json"} if method == "POST" else {}
        return self.http.request(method, path, content=body or None, headers={**self.headers(method, path, body), **kind, **headers})

    def offer(self, wait: float = 10) -> Offer | None:
        """Ask for work."""
        answer = self.call("GET", f"offer?wait={wait:g}")
        assert answer.status_code in (200, 204), answer.text
        return Offer.model_validate_json(answer.content) if answer.status_code == 200 else None

    def put(self, content: bytes) -> httpx2.Response:
        """Send bytes; what is signed is the digest in the path."""
        path = f"{API}/federation/blobs/{digest_of(content)}"
        headers = self.headers("PUT", path, content)
        stamp = (headers["Wegeft-Timestamp"], headers["Wegeft-Nonce"])
        assert request_content("PUT", path, content, *stamp) == upload_content("PUT", path, digest_of(content)[7:], stamp)
        return self.http.put(path, content=content, headers=headers)

    def submit(self, signed: SignedUpdate) -> httpx2.Response:
        """Send an update whose bytes were sent."""
        return self.call("POST", "updates", signed.to_bytes())

    def answer(self, offer: Offer, **options: Any) -> SignedReceipt:
        """Train, send and submit."""
        signed, content = train(offer, self.index, **options)
        assert self.put(content).status_code in (200, 201)
        answer = self.submit(signed)
        assert answer.status_code == 201, answer.text
        return SignedReceipt.model_validate_json(answer.content)

    def submit_again(self, offer: Offer) -> SignedReceipt:
        """Submit what was trained for an offer, without sending its bytes."""
        answer = self.submit(train(offer, self.index)[0])
        assert answer.status_code == 201, answer.text
        return SignedReceipt.model_validate_json(answer.content)
