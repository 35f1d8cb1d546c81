"""What a federation's server refuses over real HTTP: wrong updates, requests that are not the site's own, too much, and absurd numbers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from infra.bodies import BODY_SECONDS, MAX_STREAMS, STREAMS_A_SENDER
from tests.infra.test_gate import send, wait_until
from tests.orchestrator.federating import API, FakeSite, key_of, now, plain_spec, start_files, train
from tests.orchestrator.federation_world import World, count_blobs, problems, serving
from tests.orchestrator.samples import new_sqlite
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.federation import Offer, ReasonCode
from wegeft.contracts.signatures import sign
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.tensors import FLOAT_TYPES, read_tensors


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


def test_what_is_another_sites_or_nobodys_is_refused(world: World) -> None:
    _, (site, other) = world.begin(0, 1)
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
