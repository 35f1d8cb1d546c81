"""A federation's server that listens, its owner and its sites, over real HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
from sqlalchemy import Engine

from hub import catalog
from infra.database import reading
from tests.http_clients import patient_client
from tests.orchestrator.federating import API, FakeSite, Server, now, plain_spec
from tests.orchestrator.serving import listening
from wegeft.contracts.enrolment import FederationView


class World:
    """A server that listens and drives its federations, its owner, and sites."""

    def __init__(self, server: Server, url: str) -> None:
        self.server, self.url = server, url
        self.closing = ExitStack()
        self.owner = self.person("admin")

    def person(self, role: str) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.server.make_token(role)}"}
        client = patient_client(base_url=f"{self.url}{API}", headers=headers)
        return self.closing.enter_context(client)

    def site(self, index: int) -> FakeSite:
        site = FakeSite(self.url, index)
        self.closing.enter_context(site.http)
        return site

    def submit(self, **section: Any) -> str:
        answer = self.owner.post("/jobs", json={"spec": plain_spec(self.server, **section)})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def invite(self, job_id: str, name: str, **fields: Any) -> str:
        answer = self.owner.post(f"/jobs/{job_id}/invitations", json={"name": name, **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    def join(self, job_id: str, *indices: int) -> list[FakeSite]:
        """Sites that are invited, enrolled and approved at once."""
        sites = [self.site(index) for index in indices]
        for site in sites:
            site.enrol(self.invite(job_id, f"site-{site.index}", approve=True))
        return sites

    def drive(self) -> None:
        """Let the server drive its federations until the test ends."""
        thread = self.server.thread()
        thread.start()
        self.closing.callback(thread.close)

    def begin(self, *indices: int, **section: Any) -> tuple[str, list[FakeSite]]:
        """A federation whose sites have all joined before its first round opens."""
        job_id = self.submit(**section)
        sites = self.join(job_id, *indices)
        self.drive()
        return job_id, sites

    def play(self, job_id: str, sites: Sequence[FakeSite], rounds: int = 1) -> None:
        """Let all sites answer the next rounds, which are the federation's last."""
        for _ in range(rounds):
            for site in sites:
                offer = site.offer()
                assert offer is not None
                site.answer(offer)
        self.wait_for(job_id, "succeeded")

    def look(self, job_id: str) -> FederationView:
        return FederationView.model_validate_json(self.owner.get(f"/jobs/{job_id}/federation").content)

    def wait_for(self, job_id: str, state: str) -> dict[str, Any]:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            view: dict[str, Any] = self.owner.get(f"/jobs/{job_id}").json()
            if view["state"] == state:
                return view
            time.sleep(0.02)
        raise AssertionError(view)


@contextmanager
def serving(engine: Engine) -> Iterator[World]:
    server = Server(engine)
    with listening(server.app()) as url:
        world = World(server, url)
        with world.closing:
            yield world


def count_blobs(server: Server) -> int:
    """How many blobs are stored or on their way."""
    with reading(server.engine) as connection:
        return catalog.take_stock(connection, now()).blobs


def problems(answer: httpx2.Response) -> dict[str, str]:
    return {problem["path"]: problem["message"] for problem in answer.json()["problems"]}
