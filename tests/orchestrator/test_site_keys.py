"""A site's new key over real HTTP: the old one is refused from the moment it is bound, and nothing that was accepted is lost."""

from __future__ import annotations

from datetime import datetime, timedelta

import httpx2
import pytest

from infra.database import reading, writing
from orchestrator.ledger import site_keys, sites
from orchestrator.update_intake import Caller, UpdateIntake
from tests.orchestrator.federating import API, SERVER_KEY, FakeSite, key_of, now, train
from tests.orchestrator.federation_world import World, problems
from wegeft.contracts.enrolment import Enrolment
from wegeft.contracts.errors import Unauthenticated
from wegeft.contracts.rotation import RotationRequest, rotation_content
from wegeft.contracts.signatures import is_signed, public_key_of, sign

NEW = 40
"""Whose key the site gets."""


def order(world: World, job_id: str, name: str = "site-0", status: int = 201) -> str:
    answer = world.owner.post(f"/jobs/{job_id}/sites/{name}/rotate", json={})
    assert answer.status_code == status, answer.text
    return str(answer.json().get("token", ""))


def bind(site: FakeSite, token: str, index: int = NEW, proof: str | None = None) -> httpx2.Response:
    public_key = public_key_of(key_of(index))
    signed = proof or sign(key_of(index), rotation_content(token, public_key))
    body = RotationRequest(token=token, public_key=public_key, proof=signed)
    return site.http.post(f"{API}/federation/rotations", content=body.to_bytes(), headers={"Content-Type": "application/json"})


def renewed(world: World, site: FakeSite) -> FakeSite:
    """The same site with its new key."""
    other = world.site(NEW)
    other.job_id, other.pseudonym = site.job_id, site.pseudonym
    return other


def test_a_new_key_takes_over_with_what_is_pending(world: World) -> None:
    job_id, (site, other) = world.begin(0, 1, rounds=2)
    first, theirs = site.offer(), other.offer()
    assert first is not None
    assert theirs is not None
    receipt = site.answer(first)
    other.answer(theirs)
    second = site.offer()
    assert second is not None
    signed, content = train(second, 0)
    assert site.put(content).status_code == 201
    token = order(world, job_id)
    answer = bind(site, token)
    assert answer.status_code == 201, answer.text
    bound = Enrolment.model_validate_json(answer.content)
    assert (bound.site.pseudonym, bound.site.public_key) == (site.pseudonym, public_key_of(key_of(NEW)))
    assert bind(site, token).json() == answer.json()
    for refused in (site.call("GET", "site"), site.submit(signed), site.put(content)):
        assert refused.status_code == 401
    new = renewed(world, site)
    stale = new.submit(signed)
    assert (stale.status_code, set(problems(stale))) == (422, {"signature"})
    again = signed.model_copy(update={"signature": sign(key_of(NEW), signed.update.to_bytes())})
    assert new.submit(again).status_code == 201
    theirs = other.offer()
    assert theirs is not None
    other.answer(theirs)
    world.wait_for(job_id, "succeeded")
    members = [{member.site for member in view.record.members} for view in world.server.rounds(job_id) if view.record]
    assert members == [{site.pseudonym, other.pseudonym}] * 2
    assert is_signed(public_key_of(SERVER_KEY), receipt.receipt.to_bytes(), receipt.signature)
    with reading(world.server.engine) as connection:
        former = site_keys.list_former_keys(connection, job_id)
    assert [key for key, _ in former[site.pseudonym]] == [public_key_of(key_of(0))]
    texts = [event["event"].get("text", "") for event in world.owner.get(f"/jobs/{job_id}/events").json()["records"]]
    assert "site-0 has a new key" in texts


def test_a_token_binds_one_key_that_nobody_has_or_had(world: World) -> None:
    job_id = world.submit()
    site, _other = world.join(job_id, 0, 1)
    token = order(world, job_id)
    assert problems(bind(site, token, proof=sign(key_of(NEW), b"anything"))).keys() == {"proof"}
    taken = bind(site, token, index=1)
    assert (taken.status_code, set(problems(taken))) == (409, {"public_key"})
    assert bind(site, token).status_code == 201
    assert bind(site, token, index=41).status_code == 401
    back = bind(site, order(world, job_id), index=0)
    assert (back.status_code, back.json()["problems"][0]["message"]) == (409, "the key was replaced, and is no site's any more")
    with pytest.raises(AssertionError, match="replaced"):
        world.site(0).enrol(world.invite(job_id, "site-9"))
    replaced = order(world, job_id)
    order(world, job_id)
    assert bind(site, replaced, index=42).status_code == 401
    assert bind(site, "wgr_" + "0" * 12 + "_" + "0" * 64, index=42).status_code == 401
    order(world, job_id, "nobody", status=404)
    world.owner.post(f"/jobs/{job_id}/sites/site-1/revoke")
    order(world, job_id, "site-1", status=409)
    assert world.person("read").post(f"/jobs/{job_id}/sites/site-0/rotate", json={}).status_code == 403
    assert world.owner.post(f"/jobs/{job_id}/sites/site-0/rotate", json={"expires_in_seconds": 1}).status_code == 422


def test_a_token_that_has_expired_binds_nothing(world: World) -> None:
    job_id = world.submit()
    (site,) = world.join(job_id, 0)
    with writing(world.server.engine) as connection:
        found = sites.find_site(connection, site.pseudonym)
        late: datetime = now() - timedelta(seconds=1)
        token = "wgr_" + "1" * 12 + "_" + "1" * 64
        site_keys.order_rotation(connection, found, token, "ada", late)
    assert bind(site, token).json()["detail"] == "the token has expired"
    assert site.call("GET", "site").status_code == 200


def test_a_request_that_was_let_in_before_is_not_accepted_after(world: World) -> None:
    job_id, (site, _other) = world.begin(0, 1)
    offer = site.offer()
    assert offer is not None
    signed, content = train(offer, 0)
    site.put(content)
    with reading(world.server.engine) as connection:
        caller = Caller(job_id=job_id, site=sites.find_site(connection, site.pseudonym))
    assert bind(site, order(world, job_id)).status_code == 201
    with pytest.raises(Unauthenticated, match="new key"):
        UpdateIntake(world.server.services, SERVER_KEY).take_update(caller, signed)


def test_an_invitation_is_read_without_being_used(world: World) -> None:
    job_id = world.submit()
    token = world.invite(job_id, "site-0")
    site = world.site(0)

    def look(text: str) -> httpx2.Response:
        return site.http.post(f"{API}/federation/invitations", json={"token": text})

    told = look(token).json()
    assert (told["job_id"], told["name"], told["approve"], told["server_key"]) == (job_id, "site-0", False, public_key_of(SERVER_KEY))
    assert told["spec"]["federation"]["rounds"] == 2
    assert world.look(job_id).sites == ()
    enrolment = site.enrol(token)
    assert enrolment.spec.model_dump(mode="json") == told["spec"]
    assert look("wgi_" + "0" * 12 + "_" + "0" * 64).status_code == 401
    assert look("nothing").status_code == 422
    world.owner.post(f"/jobs/{job_id}/cancel")
    assert look(token).status_code == 410
