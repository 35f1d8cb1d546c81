"""Federated jobs over real HTTP, on SQLite and PostgreSQL: from the invitation to the published version."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from hub.collection import Collector
from infra.database import writing
from orchestrator import ledger
from orchestrator.federation_files import read_state
from tests.orchestrator.federating import API, SERVER_KEY, FakeSite, key_of, now, train
from tests.orchestrator.federation_world import World, problems
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.federation import Decline, ReasonCode
from wegeft.contracts.signatures import is_signed, public_key_of, sign
from wegeft.contracts.tensors import read_tensors


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
    job_id, (site, other) = world.begin(0, 1, deadline="4s", max_failed_rounds=1)
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
