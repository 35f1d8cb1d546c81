"""Federated jobs over real HTTP, on SQLite and PostgreSQL: from the invitation to the published version, and everything that is refused."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine

from hub import catalog
from hub.collection import Collector
from infra.bodies import BODY_SECONDS, MAX_STREAMS, STREAMS_A_SENDER
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.federation_files import read_state
from tests.infra.test_gate import send, wait_until
from tests.orchestrator.federating import API, SERVER_KEY, FakeSite, Server, key_of, now, plain_spec, start_files, train
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import listening
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.enrolment import FederationView
from wegeft.contracts.federation import Decline, Offer, ReasonCode
from wegeft.contracts.signatures import is_signed, public_key_of, sign
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.tensors import FLOAT_TYPES, read_tensors


class World:
    """A server that listens and drives its federations, its owner, and sites."""

    def __init__(self, server: Server, url: str) -> None:
        self.server, self.url = server, url
        self.closing = ExitStack()
        self.owner = self.person("admin")

    def person(self, role: str) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.server.make_token(role)}"}
        client = httpx2.Client(base_url=f"{self.url}{API}", headers=headers, trust_env=False, timeout=60)
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


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    engine = new_sqlite(tmp_path / "a.db")
    with serving(engine) as world:
        yield world
    engine.dispose()


@pytest.fixture
def any_world(engine: Engine) -> Iterator[World]:
    """On SQLite and on PostgreSQL."""
    with serving(engine) as world:
        yield world


@pytest.fixture(scope="module")
def one_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeSite, Offer]]:
    """A site that is asked, and what it is asked."""
    engine = new_sqlite(tmp_path_factory.mktemp("one") / "a.db")
    with serving(engine) as world:
        _, (site,) = world.begin(0, rounds=1, min_sites=1)
        offer = site.offer()
        assert offer is not None
        yield site, offer
    engine.dispose()


def count_blobs(server: Server) -> int:
    """How many blobs are stored or on their way."""
    with reading(server.engine) as connection:
        return catalog.take_stock(connection, now()).blobs


def problems(answer: httpx2.Response) -> dict[str, str]:
    return {problem["path"]: problem["message"] for problem in answer.json()["problems"]}


def test_two_sites_and_two_rounds_end_in_a_version_a_round(any_world: World) -> None:
    job_id = any_world.submit()
    any_world.drive()
    assert any_world.owner.get(f"/jobs/{job_id}").json()["state"] == "queued"
    tokens = [any_world.invite(job_id, f"site-{index}") for index in range(2)]
    sites = [any_world.site(index) for index in range(2)]
    enrolments = [site.enrol(token) for site, token in zip(sites, tokens, strict=True)]
    assert [(one.site.state, one.spec.federation is not None) for one in enrolments] == [("pending", True)] * 2
    assert sites[0].enrol(tokens[0]) == enrolments[0]
    assert sites[0].offer(0) is None
    assert any_world.wait_for(job_id, "queued")["waiting_for"].startswith(("sites: 0 of at least 2", "the scheduler"))
    for index in range(2):
        assert any_world.owner.post(f"/jobs/{job_id}/sites/site-{index}/approve").json()["site"]["state"] == "approved"
    for number in (1, 2):
        for site in sites:
            offer = site.offer()
            assert offer is not None
            assert (offer.round, offer.base_model, offer.rank) == (number, "org/model", 2)
            start = site.call("GET", f"blobs/{offer.start}")
            assert digest_of(start.content) == offer.start
            part = site.call("GET", f"blobs/{offer.start}", Range="bytes=8-15")
            assert (part.status_code, part.content) == (206, start.content[8:16])
            receipt = site.answer(offer)
            assert is_signed(public_key_of(SERVER_KEY), receipt.receipt.to_bytes(), receipt.signature)
    view = any_world.wait_for(job_id, "succeeded")
    assert (view["result"], view["waiting_for"], view["error"]) == ({"adapter": "local/sums", "version": 2}, None, None)
    assert (view["step"], view["total_steps"]) == (2, 2)
    over = sites[0].call("GET", "offer?wait=5")
    assert (over.status_code, over.json()["code"], over.json()["problems"][0]["value"]) == (410, "federation_over", "succeeded")
    check_what_was_published(any_world, job_id, sites)


def check_what_was_published(world: World, job_id: str, sites: list[FakeSite]) -> None:
    seen = world.look(job_id)
    assert (seen.rounds_committed, seen.published, [site.rounds_joined for site in seen.sites]) == (2, "local/sums@2", [2, 2])
    newest, oldest = world.owner.get(f"/jobs/{job_id}/rounds").json()
    assert world.owner.get(f"/jobs/{job_id}/rounds", params={"before": 2}).json() == [oldest]
    record = newest["record"]
    assert (record["round"], record["published"], record["start"]) == (2, "local/sums@2", oldest["record"]["result"])
    assert [member["site"] for member in record["members"]] == sorted(site.pseudonym for site in sites)
    assert sum(member["weight"] for member in record["members"]) == pytest.approx(1)
    version = world.owner.get("/adapters/local/sums/versions/2").json()
    assert version["source"] == f"round:{job_id}:2"
    assert version["metrics"]["aggregation_residual"] == record["measures"]["aggregation_residual"] > 0
    assert version["metrics"]["mean_train_loss"] == pytest.approx(0.5)
    files = "/adapters/local/sums/versions/2/files"
    told = world.owner.get(f"{files}/metrics.json").json()["round"]
    assert {**told, "published": "local/sums@2"} == record
    config = world.owner.get(f"{files}/adapter_config.json").json()
    assert config["r"] > 2  # the residual is in it
    assert config["wegeft_alpha"] / config["r"] == pytest.approx(2.0)
    tensors = read_tensors(world.owner.get(f"{files}/adapter_model.safetensors").content)
    state = read_state(b"".join(world.server.store.get(record["result"])))
    for group, edit in state.edits.items():
        phi, psi = (tensors[f"base_model.wegeft_generators.{group}.{part}"].astype(float) for part in ("phi", "psi"))
        assert phi.shape[1] == config["r"]
        whole = edit.pair.scale * edit.pair.p.T @ edit.pair.q + edit.residual.scale * edit.residual.p.T @ edit.residual.q
        assert abs(2.0 * phi @ psi - whole).max() < 1e-5
    log = [event["event"].get("text", "") for event in world.owner.get(f"/jobs/{job_id}/events").json()["records"]]
    assert any("round 2 committed as local/sums@2" in text for text in log)


def test_bytes_of_rounds_are_kept_as_long_as_the_job_and_a_while_after_it(world: World) -> None:
    job_id, sites = world.begin(0, 1)
    collector = Collector(engine=world.server.engine, store=world.server.store)
    much_later = now() + timedelta(days=400)
    for _ in range(2):
        for site in sites:
            offer = site.offer()
            assert offer is not None
            collector.collect(much_later, 1000)
            site.answer(offer)
            collector.collect(much_later, 1000)
    world.wait_for(job_id, "succeeded")
    records = [view.record for view in world.server.rounds(job_id) if view.record]
    needed = {digest for record in records for digest in (record.start, str(record.result), *(one.tensors for one in record.members))}
    assert (len(needed), [digest for digest in needed if world.server.store.has(digest) is None]) == (3 + 4, [])
    with writing(world.server.engine) as connection:
        assert ledger.let_go_of_ended(connection, much_later) == 1
    collector.collect(much_later, 1000)
    assert [digest for digest in needed if world.server.store.has(digest) is not None] == []
    assert world.owner.get("/adapters/local/sums/versions/1/files/adapter_model.safetensors").status_code == 200


def test_waiting_sites_hear_of_a_round_at_once(world: World) -> None:
    job_id, sites = world.begin(0, 1, rounds=3)
    heard: list[float] = []
    first = sites[0].offer()
    assert first is not None
    sites[0].answer(first)
    waiting = threading.Thread(target=lambda: (sites[0].offer(20), heard.append(time.monotonic())))
    waiting.start()
    time.sleep(0.3)
    second = sites[1].offer()
    assert second is not None
    sites[1].answer(second)
    sent = time.monotonic()
    waiting.join(20)
    assert heard[0] - sent < 5
    assert world.look(job_id).rounds_committed == 1


def test_a_late_update_is_told_which_round_is_the_current_one(world: World) -> None:
    _, (one, two, late) = world.begin(0, 1, 2, rounds=2, min_sites=2, target_sites=3, grace="1s")
    offers = [site.offer() for site in (one, two, late)]
    assert all(offers)
    for site, offer in zip((one, two), offers, strict=False):
        assert offer is not None
        site.answer(offer)
    time.sleep(1.2)
    following = one.offer()
    assert following is not None
    assert following.round == 2
    assert offers[2] is not None
    signed, _ = train(offers[2], 2)
    answer = late.submit(signed)
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_round")
    assert answer.json()["problems"][0]["value"] == "2"
    assert late.offer() is not None


def test_int8_updates_are_read_strictly_and_decoded_before_they_are_judged(world: World) -> None:
    job_id, (good, bad) = world.begin(0, 1, rounds=1, min_sites=2, wire="int8", max_update_norm=50.0)
    offer, theirs = bad.offer(), good.offer()
    assert offer is not None
    assert theirs is not None
    assert offer.wire == "int8"
    _, content = train(offer, 1)
    stored = dict(read_tensors(content, accepted=FLOAT_TYPES | {"I8"}))
    kinds = {name: "F32" if name.endswith(".scale") else "I8" for name in stored}
    spoilt = {
        "down_proj.phi.scale": -stored["down_proj.phi.scale"],
        "q_proj.psi.scale": stored["q_proj.psi.scale"][:1],
    }
    assert set(problems(send_tensors(bad, offer, write_tensors(stored | spoilt, kinds)))) == set(spoilt)
    loud = {name: 1e6 * array if name.endswith(".scale") else array for name, array in stored.items()}
    assert set(problems(send_tensors(bad, offer, write_tensors(loud, kinds)))) == {"norm"}
    vast = {name: 1e37 * array if name.endswith(".scale") else array for name, array in stored.items()}
    assert set(problems(send_tensors(bad, offer, write_tensors(vast, kinds)))) == set(offer.tensors)
    floats = {name: array for name, array in stored.items() if not name.endswith(".scale")}
    assert set(problems(send_tensors(bad, offer, write_tensors(floats, "F32")))) == set(offer.tensors) | {
        f"{name}.scale" for name in offer.tensors
    }
    bad.answer(offer)
    good.answer(theirs)
    world.wait_for(job_id, "succeeded")


def send_tensors(site: FakeSite, offer: Offer, content: bytes) -> httpx2.Response:
    """Send these bytes, whatever they are, as the answer to an offer."""
    site.put(content)
    signed, _ = train(offer, site.index, tensors=digest_of(content), size=len(content))
    return site.submit(signed)


def test_a_bad_update_is_refused_with_all_problems_and_the_round_goes_on(world: World) -> None:
    job_id, (good, bad, third) = world.begin(0, 1, 2, rounds=1, min_sites=2, grace="1s")
    offers = {site: site.offer() for site in (good, bad, third)}
    offer = offers[bad]
    assert offer is not None
    signed, content = train(offer, 1, examples=10**12, base_model="other/model", size=3)
    missing = bad.submit(signed)
    assert (missing.status_code, set(problems(missing))) == (422, {"tensors"})
    bad.put(content)
    answer = bad.submit(signed)
    assert (answer.status_code, set(problems(answer))) == (422, {"examples", "base_model", "size"})
    assert problems(bad.submit(signed)) == problems(answer)
    huge, content = train(offer, 1, drift=1e6)
    bad.put(content)
    assert set(problems(bad.submit(huge))) == {"norm"}
    forged, content = train(offer, 2, site=offer.site)
    bad.put(content)
    assert set(problems(bad.submit(forged))) == {"signature"}
    bad.put(b"not a safetensors file")
    broken, _ = train(offer, 1, tensors=digest_of(b"not a safetensors file"), size=22)
    assert bad.submit(broken).status_code == 422
    for site in (good, third):
        told = offers[site]
        assert told is not None
        site.answer(told)
    world.wait_for(job_id, "succeeded")
    record = world.look(job_id).current
    assert record is not None
    assert record.record is not None
    assert [(one.site, one.reason) for one in record.record.left_out] == [(bad.pseudonym, ReasonCode.REFUSED)]
    assert {problem.path for problem in record.record.left_out[0].problems} >= {"examples", "norm", "signature"}
    assert world.look(job_id).sites[1].last_problem is ReasonCode.REFUSED


def test_the_same_update_again_gets_the_same_receipt_and_another_none(any_world: World) -> None:
    _, (site, other) = any_world.begin(0, 1, rounds=2)
    offer = site.offer()
    assert offer is not None
    receipt = site.answer(offer)
    assert site.answer(offer, drift=0.1) == receipt if site.offer(0) else True
    signed, content = train(offer, 0)
    again = site.submit(signed)
    assert (again.status_code, json.loads(again.content)) == (201, receipt.model_dump(mode="json"))
    changed, content = train(offer, 0, drift=0.2)
    assert site.put(content).status_code == 409  # it has answered, so it may send nothing
    assert site.submit(changed).status_code == 422
    told = other.offer()
    assert told is not None
    other.answer(told)
    assert site.offer() is not None
    assert site.submit(signed).json() == again.json()


def test_requests_that_are_not_the_sites_own_are_refused(any_world: World) -> None:
    job_id, (site, other) = any_world.begin(0, 1)
    path = f"{API}/federation/site"
    headers = site.headers("GET", path)
    assert site.http.get(path, headers=headers).status_code == 200
    replayed = site.http.get(path, headers=headers)
    assert (replayed.status_code, problems(replayed)) == (401, {"nonce": "this very request has come before"})
    old = site.headers("GET", path, timestamp=(now() - timedelta(minutes=10)).isoformat())
    answer = site.http.get(path, headers=old)
    assert (answer.status_code, set(problems(answer))) == (401, {"wegeft-timestamp"})
    assert "date" in answer.headers
    for change in (
        {"Wegeft-Site": f"{job_id}/{other.pseudonym}"},
        {"Wegeft-Nonce": secrets.token_hex(16)},
        {"Wegeft-Nonce": "n"},
        {"Wegeft-Signature": sign(key_of(0), b"other")},
        {"Wegeft-Site": "nobody"},
        {"Wegeft-Timestamp": "yesterday"},
    ):
        assert site.http.get(path, headers=site.headers("GET", path) | change).status_code == 401, change
    assert site.http.get(path + "?x=1", headers=site.headers("GET", path)).status_code == 401
    assert site.http.get(path).status_code == 401
    assert site.http.post(f"{API}/federation/updates", content=b"{}").status_code == 401
    offer = site.offer()
    assert offer is not None
    assert site.call("GET", f"blobs/{digest_of(start_files()[1])}").status_code == 404
    too_long = site.put(b"x" * 100_000)
    assert too_long.status_code == 413
    told = other.offer()
    assert told is not None
    theirs, content = train(told, 1)
    other.put(content)
    echo, _ = train(offer, 0, tensors=theirs.update.tensors, size=len(content))
    assert set(problems(site.submit(echo))) == {"tensors"}
    stolen = site.submit(theirs)
    assert (stolen.status_code, set(problems(stolen))) == (422, {"site"})


def test_a_site_may_not_fill_the_store(world: World) -> None:
    _, (site, _) = world.begin(0, 1)
    assert site.offer() is not None
    answers = [site.put(f"some bytes {index}".encode()).status_code for index in range(9)]
    assert answers == [201] * 8 + [413]
    assert world.server.store.has(digest_of(b"some bytes 8")) is None
    assert site.put(b"some bytes 3").status_code == 200


def test_a_site_that_sends_slowly_leaves_the_others_their_slots(world: World) -> None:
    _, (slow, other) = world.begin(0, 1)
    offers = [site.offer() for site in (slow, other)]
    assert offers[1] is not None
    before = count_blobs(world.server)
    for number in range(MAX_STREAMS):
        content = f"some {number:02}".encode()
        path = f"{API}/federation/blobs/{digest_of(content)}"
        headers = {**slow.headers("PUT", path, content), "Content-Length": str(len(content))}
        world.closing.enter_context(send(world.url, f"PUT {path} HTTP/1.1", headers, content[:1]))
    wait_until(lambda: count_blobs(world.server) >= before + STREAMS_A_SENDER)
    other.http.timeout = BODY_SECONDS / 2
    assert other.answer(offers[1]).receipt.site == other.pseudonym


@pytest.mark.parametrize("change", [{"round": 2**31}, {"attempt": 10**30}, {"base_model": "x" * 5000}, {"steps": 2**63}])
def test_an_update_of_absurd_numbers_is_refused_before_it_is_looked_up(one_site: tuple[FakeSite, Offer], change: dict[str, Any]) -> None:
    site, offer = one_site
    told = {**train(offer, 0)[0].model_dump(mode="json")["update"], **change}
    answer = site.call("POST", "updates", json.dumps({"update": told, "signature": "ed25519:" + "0" * 128}).encode())
    assert (answer.status_code, set(problems(answer))) == (422, {f"body.update.{name}" for name in change})
    decline = {"job_id": offer.job_id, "site": offer.site, "reason": "declined", "round": 1} | change
    assert site.call("POST", "declines", json.dumps(decline).encode()).status_code == 422


def test_an_invitation_is_for_one_site_once_and_can_be_withdrawn(world: World) -> None:
    job_id = world.submit()
    world.drive()
    used, unused = world.invite(job_id, "site-0"), world.invite(job_id, "site-1")
    world.site(0).enrol(used)
    thief = world.site(5)
    public_key = public_key_of(key_of(5))
    body = {"token": used, "public_key": public_key, "max_examples": 5, "proof": sign(key_of(5), b"anything")}
    assert problems(thief.http.post(f"{API}/federation/enrolments", json=body)).keys() == {"proof"}
    with pytest.raises(AssertionError, match="used by another key"):
        thief.enrol(used)
    assert world.owner.post(f"/jobs/{job_id}/invitations", json={"name": "site-0"}).status_code == 409
    assert world.owner.delete(f"/jobs/{job_id}/invitations/site-0").status_code == 409
    assert world.owner.delete(f"/jobs/{job_id}/invitations/site-1").status_code == 204
    assert world.owner.delete(f"/jobs/{job_id}/invitations/site-1").status_code == 404
    with pytest.raises(AssertionError, match="unknown or has expired"):
        thief.enrol(unused)
    other = world.submit()
    with pytest.raises(AssertionError, match="the key is enrolled already"):
        world.site(0).enrol(world.invite(other, "site-0"))
    reader = world.person("read")
    assert reader.post(f"/jobs/{job_id}/invitations", json={"name": "x"}).status_code == 403
    assert reader.get(f"/jobs/{job_id}/federation").status_code == 200
    bad = world.owner.post(f"/jobs/{job_id}/invitations", json={"name": "Not A Name", "expires_in_seconds": 1})
    assert (bad.status_code, len(problems(bad))) == (422, 2)


def test_a_revoked_site_is_out_of_the_open_round_and_of_all_others(world: World) -> None:
    job_id, sites = world.begin(0, 1, 2, rounds=1, min_sites=2)
    offers = [site.offer() for site in sites]
    assert offers[0] is not None
    sites[0].answer(offers[0])
    assert world.owner.post(f"/jobs/{job_id}/sites/site-0/revoke").json()["site"]["state"] == "revoked"
    assert sites[0].call("GET", "offer").status_code == 403
    assert world.owner.post(f"/jobs/{job_id}/sites/site-0/approve").status_code == 409
    for site, offer in zip(sites[1:], offers[1:], strict=True):
        assert offer is not None
        site.answer(offer)
    world.wait_for(job_id, "succeeded")
    record = world.look(job_id).current
    assert record is not None
    assert record.record is not None
    assert {one.site: one.reason for one in record.record.left_out} == {sites[0].pseudonym: ReasonCode.REVOKED}


def test_rounds_without_a_quorum_are_tried_again_until_the_job_fails(world: World) -> None:
    job_id, (site, other) = world.begin(0, 1, deadline="1s", max_failed_rounds=1)
    offer = other.offer()
    assert offer is not None
    decline = Decline(job_id=job_id, round=1, site=other.pseudonym, reason=ReasonCode.DECLINED)
    for _ in range(2):
        assert other.call("POST", "declines", decline.to_bytes()).status_code == 204
    view = world.wait_for(job_id, "failed")
    assert view["error"]["code"] == "rounds_failed"
    assert "no_quorum" in view["error"]["detail"]
    tries = world.server.rounds(job_id)
    assert [(one.round, one.attempt, one.state.value) for one in tries] == [(1, 1, "failed"), (1, 2, "failed")]
    assert tries[0].record is not None
    reasons = {one.site: one.reason.value for one in tries[0].record.left_out}
    assert reasons == {site.pseudonym: "no_answer", other.pseudonym: "declined"}
    assert tries[0].record.seed != tries[1].record.seed if tries[1].record else False


def test_cancelling_ends_the_open_round_and_tells_the_sites(world: World) -> None:
    job_id, (site, _) = world.begin(0, 1)
    assert site.offer() is not None
    world.owner.post(f"/jobs/{job_id}/cancel")
    world.wait_for(job_id, "cancelled")
    answer = site.call("GET", "offer?wait=5")
    assert (answer.status_code, answer.json()["problems"][0]["value"]) == (410, "cancelled")
    assert [(one.state.value, one.record.failure if one.record else None) for one in world.server.rounds(job_id)] == [
        ("failed", "cancelled")
    ]
    assert world.owner.post(f"/jobs/{job_id}/invitations", json={"name": "x"}).status_code == 410


def test_a_job_that_cannot_start_is_refused_with_all_reasons(world: World) -> None:
    spec = plain_spec(world.server)
    without = {**spec, "federation": {**spec["federation"], "start": None}}
    answer = world.owner.post("/jobs", json={"spec": without})
    assert (answer.status_code, set(problems(answer))) == (422, {"federation.start"})
    start = {"config": spec["federation"]["start"]["config"], "weights": "x"}
    wrong = {**spec, "rank": 3, "labels": {"a": "\n"}, "federation": {**spec["federation"], "start": start}}
    found = problems(world.owner.post("/jobs", json={"spec": wrong}))
    assert set(found) == {"labels.a", "federation.start.config: r", "federation.start.config: wegeft_alpha", "federation.start.weights"}
    answer = world.owner.post("/jobs", json={"spec": {**spec, "rank": 3}})
    assert "federation.start.weights: q_proj" in problems(answer)
    answer = world.owner.post("/jobs", json={"spec": {**spec, "federation": {**spec["federation"], "rule": "freeze_phi"}}})
    assert "nothing is learnt" in problems(answer)["federation.start.weights"]
