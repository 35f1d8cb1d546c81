"""A buffered version's evidence proves what it says, members that began with older versions included, and what is changed is found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestrator.round_proof import check_round
from tests.orchestrator.federation_world import World, serving
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.test_buffered_http import send, take
from tests.orchestrator.test_round_proof import ask, change_member, changed, failed, weights_of
from wegeft.contracts.round_evidence import RoundEvidence

Proof = tuple[World, str, RoundEvidence, dict[str, bytes]]


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    """Two versions, of which the second has a member that began with the beginning, and all bytes that its evidence names, over HTTP."""
    engine = new_sqlite(tmp_path_factory.mktemp("proof") / "a.db")
    with serving(engine) as world:
        mode = {"name": "buffered", "buffer_size": 2, "max_staleness": 2}
        job_id, (slow, *fast) = world.begin(0, 1, 2, rounds=2, min_sites=3, mode=mode, site_ranks={"site-1": 1})
        old = take(slow)
        assert old is not None
        for site in fast:
            offer = take(site)
            assert offer is not None
            assert send(site, offer) == 201
        while world.look(job_id).rounds_committed < 1:
            time.sleep(0.02)
        assert send(slow, old) == 201
        newest = take(fast[0])
        assert newest is not None
        assert send(fast[0], newest) == 201
        world.wait_for(job_id, "succeeded")
        evidence = ask(world, job_id, 2)
        digests = {evidence.record.start, *(d for member in evidence.record.members for d in (member.tensors, member.start) if d)}
        stored = {digest: world.owner.get(f"/jobs/{job_id}/rounds/2/blobs/{digest}").content for digest in digests}
        yield world, job_id, evidence, stored
    engine.dispose()


def test_a_right_buffered_version_is_proved_whole(proof: Proof) -> None:
    world, job_id, evidence, stored = proof
    first = ask(world, job_id, 1)
    assert sorted(member.staleness or 0 for member in evidence.record.members) == [0, 1]
    for one, before, version in ((evidence, first.record.result, 2), (first, None, 1)):
        found = check_round(one, lambda digest: read(proof, digest), before, weights_of(world, version))
        assert [(check.name, check.is_ok) for check in found] == [
            (name, True) for name in ("members", "signatures", "receipts", "start", "tensors", "result", "scores", "version")
        ], found
    assert len(stored) == 4


def read(proof: Proof, digest: str) -> bytes:
    world, job_id, _, stored = proof
    return stored[digest] if digest in stored else world.owner.get(f"/jobs/{job_id}/rounds/1/blobs/{digest}").content


def of_the_late_one(evidence: RoundEvidence, **fields: Any) -> RoundEvidence:
    members = tuple(one.model_copy(update=fields) if one.staleness else one for one in evidence.record.members)
    return changed(evidence, record=evidence.record.model_copy(update={"members": members}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda one: of_the_late_one(one, staleness=0), {"members"}),
        (lambda one: of_the_late_one(one, staleness=2), {"members"}),
        (lambda one: changed(one, parent=0), {"members"}),
        (lambda one: of_the_late_one(one, start=None), {"start", "result"}),
        (lambda one: of_the_late_one(one, weight=0.5), {"result"}),
        (lambda one: of_the_late_one(one, position=None), {"members"}),
        (lambda one: change_member(one, position=one.record.members[1].position), {"members"}),
        (lambda one: changed(one, record=one.record.model_copy(update={"measures": {**one.record.measures, "cut_norm": 1.0}})), {"result"}),
        (lambda one: changed(one, offers={site: next(iter(one.offers.values())) for site in one.offers}), {"members", "result"}),
    ],
)  # fmt: skip
def test_every_change_to_a_buffered_version_is_found(
    proof: Proof, change: Callable[[RoundEvidence], RoundEvidence], expected: set[str]
) -> None:
    _, _, evidence, stored = proof
    assert expected <= set(failed(check_round(change(evidence), stored.__getitem__)))


def test_one_changed_byte_of_an_update_or_of_an_older_start_is_found(proof: Proof) -> None:
    _, _, evidence, stored = proof
    starts = {evidence.record.start, *(member.start for member in evidence.record.members)}
    for digest, content in stored.items():
        rotten = {**stored, digest: content[:-1] + bytes([content[-1] ^ 1])}
        found = failed(check_round(evidence, rotten.__getitem__))
        assert "result" in found
        assert ("start" if digest in starts else "tensors") in found
