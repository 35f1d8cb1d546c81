"""The whole application with its pages, and things to show on them: names, labels, cards and logs that try to be HTML."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from fastapi import FastAPI
from sqlalchemy import insert
from starlette.testclient import TestClient

import hub.api
from cli.pages import make_frame, make_pages
from hub import catalog
from hub.description import describe
from hub.publication import Publication
from hub.services import HubServices
from infra import accounts
from infra.auth import Guard, hash_secret, make_attempt_token
from infra.database import writing
from infra.http import create_app, show_errors
from orchestrator import api, ledger
from orchestrator.ids import make_job_id
from orchestrator.ledger.federation_tables import ROUNDS, SITES
from tests.orchestrator.federating import Server
from tests.orchestrator.samples import make_spec, progress
from tests.orchestrator.serving import Site, adapter_files, now
from wegeft.contracts.adapter import CARD_FILE, JOB_FILE, AdapterName, FileEntry, digest_of
from wegeft.contracts.errors import Problem
from wegeft.contracts.federation import Exclusion, FailureCode, Member, ReasonCode, RoundRecord, RoundState
from wegeft.contracts.federation_rules import FedAvg, GeneratorExact, NoDefence
from wegeft.contracts.training import Evaluation, EventBatch, Message

EVIL = "<script>alert(1)</script>"
CARD = f"---\nlicense: mit\ntags: [math]\n---\n# Sums\n\n{EVIL} <img src=x onerror=alert(1)>\n"


@dataclass
class Pages:
    """An application whose pages are shown, and what fills them."""

    site: Site
    headers: dict[str, str] = field(default_factory=lambda: {"Accept": "text/html,*/*"})

    @cached_property
    def app(self) -> FastAPI:
        """Made once, for that takes longer than most tests."""
        engine, frame = self.site.engine, make_frame(now, None)
        guard = Guard(engine=engine, clock=now)
        services = HubServices(engine=engine, store=self.site.store, clock=now)
        routers = [
            accounts.make_router(engine, guard, now),
            api.make_router(self.site.services, guard),
            hub.api.make_router(services, guard),
        ]
        app = create_app([*routers, *make_pages(frame, None)], title="test", version="1")
        show_errors(app, frame.error_page)
        return app

    def visitor(self, role: str | None) -> TestClient:
        """A browser, signed in with a role's token, or not at all."""
        client = TestClient(self.app, headers=self.headers, follow_redirects=False)
        if role is not None:
            client.cookies.set("wegeft_session", self.site.tokens[role])
        return client

    def publish(self, name: str, source: str, card: str = CARD, at: datetime | None = None, **changes: object) -> None:
        files = {**adapter_files(), CARD_FILE: card.encode(), JOB_FILE: json.dumps({"task": "causal_lm"}).encode()}
        entries = tuple(FileEntry(path=path, digest=self.site.put(content), size=len(content)) for path, content in files.items())
        described = {"base_model": "org/base@" + "a" * 40, "method": "wegeft", "rank": 2, "metrics": {"eval_loss": 0.25}}
        publication = Publication(
            adapter=AdapterName.parse(name), files=entries, source=source, created_by="ada",
            description=describe(self.site.store, entries), **(described | changes),
        )  # fmt: skip
        with writing(self.site.engine) as connection:
            catalog.publish(connection, publication, at or now())

    def add_job(self, hours: float = 0, **fields: object) -> str:
        moment = now() - timedelta(hours=hours)
        job_id = make_job_id(moment, secrets.token_bytes(10))
        with writing(self.site.engine) as connection:
            return ledger.add(connection, ledger.NewJob(id=job_id, owner="ada", token_id="a" * 12, spec=make_spec(**fields)), moment)[0].id

    def run_job(self, steps: int = 12) -> None:
        """Let the next job be worked at."""
        with writing(self.site.engine) as connection:
            claimed = ledger.claim(connection, hash_secret(make_attempt_token()), now(), 3600)
            assert claimed is not None
            measured = Evaluation(step=steps, total_steps=100, loss=0.5, rows=3, exact_match=0.5)
            told = Message(level="warning", text=f"{EVIL}\x1b[31m row 3 was cut")
            events = (*(progress(step, 3.0 / step) for step in range(1, steps + 1)), measured, told)
            ledger.contact(connection, claimed.lease, now(), 3600, steps)
            ledger.record_events(connection, claimed.lease, EventBatch(first_number=0, events=events), now())

    def add_federation(self) -> str:
        """A federation with a committed round, a failed try and an open one."""
        engine = self.site.engine
        job_id = Server(engine, store=self.site.store).add(entropy=secrets.randbelow(2**60))
        keys = {f"site-{letter}": "ed25519:" + letter * 64 for letter in "ab"}
        with writing(engine) as connection:
            for name, key in keys.items():
                row = {"pseudonym": f"{name}-pseudonym", "job_id": job_id, "name": name, "public_key": key, "state": "approved"}
                connection.execute(insert(SITES).values(**row, max_examples=100, enrolled_at=now(), seen_at=now()))
            for number, attempt, record in ((1, 1, _record(job_id, 1)), (2, 1, _failed(job_id, 2)), (2, 2, None)):
                state = record.state.value if record else "collecting"
                text = record.to_bytes().decode() if record else None
                row = {"job_id": job_id, "number": number, "attempt": attempt, "state": state, "record": text, "since": now()}
                connection.execute(insert(ROUNDS).values(**row, start_digest=digest_of(b"start")))
        for number in (1, 2):
            self.publish("local/sums", f"round:{job_id}:{number}", metrics={"mean_train_loss": 1.0 / number})
        return job_id


def _record(job_id: str, number: int) -> RoundRecord:
    member = Member(site="site-a-pseudonym", update=digest_of(b"u"), tensors=digest_of(b"t"), examples=17, weight=1.0, agreement=0.75)
    problem = Problem(path="max_steps", message=f"must be 5 or less {EVIL}", value="9")
    left = Exclusion(site="site-b-pseudonym", reason=ReasonCode.DECLINED, problems=(problem,))
    return RoundRecord(
        job_id=job_id, round=number, state=RoundState.COMMITTED, rule=GeneratorExact(), server_optimizer=FedAvg(), defence=NoDefence(),
        seed=1, start=digest_of(b"s"), result=digest_of(b"r"), members=(member,), left_out=(left,),
        measures={"aggregation_residual": 0.125}, published="local/sums@1", created_at=now(), closed_at=now(),
    )  # fmt: skip


def _failed(job_id: str, number: int) -> RoundRecord:
    return _record(job_id, number).model_copy(
        update={"state": RoundState.FAILED, "members": (), "published": None, "failure": FailureCode.NOT_ENOUGH_SITES}
    )
