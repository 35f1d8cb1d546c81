"""A round's evidence proves what it says, and every way of changing it is found: a byte of an update, a weight, a signature, a receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from hub.objects import read_verified
from orchestrator.round_proof import Check, check_round
from tests.orchestrator.federating import key_of
from tests.orchestrator.federation_world import World, serving
from tests.orchestrator.samples import new_sqlite
from wegeft.contracts.adapter import WEIGHTS_FILE
from wegeft.contracts.errors import Forbidden
from wegeft.contracts.round_evidence import KeySpan, RoundEvidence
from wegeft.contracts.signatures import public_key_of, sign

Proof = tuple[World, str, RoundEvidence, dict[str, bytes]]


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    """A federation of two rounds that is over, the evidence of its second round, and the bytes that it names."""
    engine = new_sqlite(tmp_path_factory.mktemp("proof") / "a.db")
    with serving(engine) as world:
        job_id, sites = world.begin(0, 1, rounds=2, server_optimizer="fedadam", site_ranks={"site-1": 1})
        world.play(job_id, sites, rounds=2)
        evidence = ask(world, job_id, 2)
        digests = [evidence.record.start, *(member.tensors for member in evidence.record.members)]
        yield world, job_id, evidence, {digest: read_verified(world.server.store, digest, 1 << 30) for digest in digests}
    engine.dispose()


def ask(world: World, job_id: str, number: int) -> RoundEvidence:
    return RoundEvidence.model_validate_json(world.owner.get(f"/jobs/{job_id}/rounds/{number}/evidence").content)


def weights_of(world: World, version: int) -> str:
    files = world.owner.get(f"/adapters/local/sums/versions/{version}").json()["manifest"]["layers"]
    return next(str(entry["digest"]) for entry in files if WEIGHTS_FILE in entry["annotations"].values())


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.is_ok is False]


def test_a_right_round_is_proved_whole(proof: Proof) -> None:
    world, job_id, evidence, stored = proof
    first = ask(world, job_id, 1)
    assert (evidence.parent, first.parent) == (1, 0)
    checks = check_round(evidence, stored.__getitem__, first.record.result, weights_of(world, 2))
    assert [(check.name, check.is_ok) for check in checks] == [
        (name, True) for name in ("members", "signatures", "receipts", "start", "tensors", "result", "scores", "version")
    ], checks


def change_member(evidence: RoundEvidence, **fields: Any) -> RoundEvidence:
    first, *others = evidence.record.members
    return changed(evidence, record=evidence.record.model_copy(update={"members": (first.model_copy(update=fields), *others)}))


def changed(evidence: RoundEvidence, **fields: Any) -> RoundEvidence:
    return evidence.model_copy(update=fields)


def forge(evidence: RoundEvidence) -> RoundEvidence:
    first, *others = evidence.updates
    signature = sign(key_of(7), first.update.to_bytes())
    return changed(evidence, updates=(first.model_copy(update={"signature": signature}), *others))


def forge_receipt(evidence: RoundEvidence) -> RoundEvidence:
    first, *others = evidence.receipts
    signature = sign(key_of(7), first.receipt.to_bytes())
    return changed(evidence, receipts=(first.model_copy(update={"signature": signature}), *others))


def retire(evidence: RoundEvidence) -> RoundEvidence:
    """The key was replaced before the update came."""
    (site, spans), *others = evidence.keys.items()
    ended = KeySpan(public_key=spans[0].public_key, until=evidence.record.created_at)
    return changed(evidence, keys={site: (ended, KeySpan(public_key=public_key_of(key_of(8)), until=None)), **dict(others)})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda one: change_member(one, weight=0.9), {"result"}),
        (lambda one: change_member(one, agreement=0.9), {"scores"}),
        (lambda one: change_member(one, influence=None), {"scores"}),
        (lambda one: change_member(one, contribution=0.9), {"scores"}),
        (lambda one: change_member(one, examples=99), {"members"}),
        (lambda one: change_member(one, update="sha256:" + "0" * 64), {"members"}),
        (lambda one: changed(one, record=one.record.model_copy(update={"result": "sha256:" + "0" * 64})), {"result"}),
        (lambda one: changed(one, record=one.record.model_copy(update={"members": one.record.members[1:]})), {"result"}),
        (lambda one: changed(one, record=one.record.model_copy(update={"closed_at": one.record.created_at})), {"receipts"}),
        (lambda one: changed(one, updates=one.updates[1:]), {"members", "signatures", "receipts", "tensors", "result"}),
        (lambda one: changed(one, receipts=one.receipts[1:]), {"receipts"}),
        (lambda one: changed(one, offers={}), {"members", "result"}),
        (lambda one: changed(one, spec=one.spec.model_copy(update={"federation": one.spec.federation.model_copy(
            update={"max_examples": 5})})), {"result"}),
        (forge, {"signatures"}),
        (forge_receipt, {"receipts"}),
        (retire, {"signatures"}),
    ],
)  # fmt: skip
def test_every_change_is_found(proof: Proof, change: Callable[[RoundEvidence], RoundEvidence], expected: set[str]) -> None:
    _, _, evidence, stored = proof
    assert set(failed(check_round(change(evidence), stored.__getitem__))) == expected


def test_one_changed_byte_is_found(proof: Proof) -> None:
    _, _, evidence, stored = proof
    for digest, content in stored.items():
        rotten = {**stored, digest: content[:-1] + bytes([content[-1] ^ 1])}
        found = failed(check_round(evidence, rotten.__getitem__))
        assert "result" in found
        assert ("start" in found) == (digest == evidence.record.start)
        assert ("tensors" in found) == (digest != evidence.record.start)


def test_another_start_or_version_is_found(proof: Proof) -> None:
    world, _, evidence, stored = proof
    checks = check_round(evidence, stored.__getitem__, "sha256:" + "1" * 64, weights_of(world, 1))
    assert failed(checks) == ["start", "version"]


def test_whoever_may_not_read_updates_is_told_what_was_not_looked_at(proof: Proof) -> None:
    _, _, evidence, _ = proof

    def refuse(_digest: str) -> bytes:
        raise Forbidden

    checks = {check.name: check.is_ok for check in check_round(evidence, refuse)}
    assert checks == {
        "members": True, "signatures": True, "receipts": True, "start": None, "tensors": None, "result": None, "scores": None,
        "version": None,
    }  # fmt: skip


def test_bytes_are_for_administrators_and_only_what_the_round_names(proof: Proof) -> None:
    world, job_id, evidence, stored = proof
    path = f"/jobs/{job_id}/rounds/2/blobs"
    for digest, content in stored.items():
        assert world.owner.get(f"{path}/{digest}").content == content
    reader: httpx2.Client = world.person("write")
    assert reader.get(f"{path}/{evidence.record.start}").status_code == 403
    assert reader.get(f"/jobs/{job_id}/rounds/2/evidence").status_code == 200
    first = ask(world, job_id, 1).record.start
    assert world.owner.get(f"{path}/{first}").status_code == 404
    assert world.owner.get(f"{path}/nothing").status_code == 422
    assert world.owner.get(f"/jobs/{job_id}/rounds/9/evidence").status_code == 404
