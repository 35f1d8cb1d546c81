"""The real server over real HTTP with the tiny model, and sites with folders, rows and clocks of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.admission import Policy
from orchestrator.federations import FederationsThread
from tests.http_clients import patient_request
from tests.orchestrator.federating import API, Server
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import listening
from tests.tiny_models import make_model_folder, write_sums
from wegeft.client.site import SiteClient, enrol
from wegeft.contracts.job import DatasetSpec, JobSpec, parse_spec
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.training import JobState, Message, WorkerEvent
from wegeft.method import adapter_state_dict
from workers.adaptation import adapt
from workers.base_model import load_base_model, request_of
from workers.site import SiteRunner
from workers.site_home import SiteHome, SiteRecord, agreed_policy
from workers.site_inputs import SiteOptions
from workers.site_journal import Journal
from workers.site_patience import Around


@dataclass
class Member:
    """A site with its own folder, rows, clock and log."""

    home: SiteHome
    data: Path
    events: list[WorkerEvent] = field(default_factory=list)
    lead: timedelta = timedelta()
    """How far its clock is ahead."""
    options: dict[str, Any] = field(default_factory=dict)
    on_event: Callable[[WorkerEvent], None] = lambda _event: None
    sleep: Callable[[float], None] = lambda seconds: time.sleep(min(seconds, 0.05))

    @property
    def around(self) -> Around:
        return Around(
            clock=lambda: datetime.now(UTC) + self.lead,
            monotonic=time.monotonic,
            sleep=lambda seconds: self.sleep(seconds),  # noqa: PLW0108 - it may be set later
            chance=lambda: 0.5,
            tell=self._tell,
        )

    def _tell(self, event: WorkerEvent) -> None:
        self.events.append(event)
        self.on_event(event)

    def client(self) -> SiteClient:
        return SiteClient(self.home.read_record().server, self.home.credentials(), self.around.clock, patience_seconds=0)

    def run(self) -> JobState | None:
        data = [DatasetSpec(path=str(self.data))]
        options = SiteOptions(data=data, **{"patience": timedelta(seconds=20), **self.options})
        with self.home.locked(), self.client() as client:
            return SiteRunner(self.home, client, options, self.around).run()

    @property
    def texts(self) -> str:
        return "\n".join(event.text for event in self.events if isinstance(event, Message))

    @property
    def journal(self) -> Journal:
        return Journal(self.home.journal_folder)


@dataclass
class World:
    """A server that drives its federations, and its owner."""

    server: Server
    url: str
    token: str
    model: Path
    folder: Path
    drivers: list[FederationsThread] = field(default_factory=list)
    start: dict[str, str] = field(default_factory=dict)

    def drive(self) -> None:
        """Let the server drive its federations from now on."""
        thread = self.server.thread()
        thread.start()
        self.drivers.append(thread)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Open no round meanwhile, so that all sites are there when the first one opens."""
        self.drivers.pop().close()
        yield
        self.drive()

    def api(self, method: str, path: str, **fields: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = patient_request(method, f"{self.url}{API}{path}", headers=headers, **fields)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def spec(self, spec: dict[str, Any] | None = None, **section: Any) -> dict[str, Any]:
        """A federated job over the tiny model; its untrained start is in the store."""
        fields = {
            "name": "sums", "base_model": str(self.model), "rank": 4, "max_steps": 2, "micro_batch_size": 4, "learning_rate": 0.02,
            "target_modules": ["q_proj", "v_proj", "down_proj"], "sequence_len": 64, "output": {"adapter": "demo/sums"},
            **(spec or {}),
        }  # fmt: skip
        federation = {"rounds": 2, "min_sites": 2, "grace": "1s", "deadline": "60s", **section}
        if not self.start:
            self.start = self.make_start(parse_spec({**fields, "federation": federation}))
        return {**fields, "federation": {**federation, "start": self.start}}

    def make_start(self, spec: JobSpec) -> dict[str, str]:
        """Store the untrained adapter of a job; return its files' digests."""
        base = load_base_model(request_of(spec))
        model = adapt(base, spec)
        tensors = {name: tensor.numpy() for name, tensor in adapter_state_dict(model).items()}
        contents = {"config": json.dumps(model.peft_config["default"].to_dict()).encode(), "weights": write_tensors(tensors)}
        return {name: self.server.publish(content) for name, content in contents.items()}

    def submit(self, **section: Any) -> str:
        return str(self.api("POST", "/jobs", json={"spec": self.spec(**section)})["id"])

    def join(self, job_id: str, name: str, *, approve: bool = True, rows: int = 12, **fields: Any) -> Member:
        token = self.api("POST", f"/jobs/{job_id}/invitations", json={"name": name, "approve": approve})["token"]
        home = SiteHome(self.folder / f"{job_id}-{name}")
        home.prepare()
        enrolment = enrol(self.url, token, home.ensure_key(), 100)
        home.keep_record(SiteRecord(server=self.url, enrolment=enrolment))
        home.keep_policy(agreed_policy(enrolment.spec))
        data = write_sums(self.folder / f"{job_id}-{name}.jsonl", rows, start=10 * len(name))
        return Member(home, data, **fields)


@contextmanager
def running_world(folder: Path) -> Iterator[World]:
    """Serve federations from ``folder``, and drive them, until the block ends."""
    engine = new_sqlite(folder / "server.db")
    server = Server(engine)
    server.services = replace(server.services, policy=Policy(allow_local_models=True))
    with ExitStack() as stack:
        url = stack.enter_context(listening(server.app()))
        world = World(server, url, server.make_token(), make_model_folder(folder / "model"), folder)
        world.drive()
        stack.callback(lambda: world.drivers.pop().close())
        yield world
    engine.dispose()
