"""A record names the arithmetic of its scores: what another one rounds otherwise is told as that; what differs by more is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from hub.objects import read_verified
from orchestrator.aggregate import SCORE_ARITHMETIC, Refused
from orchestrator.federation_files import write_state
from orchestrator.round_proof import Check, _Proof, check_round
from tests.orchestrator.federation_world import World, serving
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.test_round_proof import ask, change_member, changed
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.federation import RoundRecord
from wegeft.contracts.federation_rules import GeometricMedian
from wegeft.contracts.round_evidence import RoundEvidence

ROUNDED = (1 + 1e-9, 1, 1 - 1e-9)
Proof = tuple[RoundEvidence, dict[str, bytes]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    engine = new_sqlite(tmp_path_factory.mktemp("arithmetic") / "a.db")
    with serving(engine) as served:
        served.drive()
        yield served
    engine.dispose()


@pytest.fixture(scope="module")
def plain(world: World) -> Proof:
    return prove(world, (0, 1))


@pytest.fixture(scope="module")
def defended(world: World) -> Proof:
    """Of a round whose weights follow from inner products."""
    return prove(world, (2, 3, 4), defence="geometric_median")


def prove(world: World, sites: tuple[int, ...], **section: Any) -> Proof:
    """The evidence of a federation's only round, and the bytes that it names."""
    job_id = world.submit(rounds=1, min_sites=len(sites), **section)
    world.play(job_id, world.join(job_id, *sites))
    evidence = ask(world, job_id, 1)
    digests = [evidence.record.start, *(member.tensors for member in evidence.record.members)]
    return evidence, {digest: read_verified(world.server.store, digest, 1 << 30) for digest in digests}


def look(evidence: RoundEvidence, stored: dict[str, bytes]) -> dict[str, Check]:
    return {check.name: check for check in check_round(evidence, stored.__getitem__)}


def of(evidence: RoundEvidence, arithmetic: int | None, **fields: Any) -> RoundEvidence:
    return changed(evidence, record=evidence.record.model_copy(update={"score_arithmetic": arithmetic, **fields}))


def test_a_committed_record_names_it_and_one_of_before_reads_and_writes_as_it_was(plain: Proof) -> None:
    record = plain[0].record
    assert record.score_arithmetic == SCORE_ARITHMETIC > 1
    older = record.model_copy(update={"score_arithmetic": None})
    assert b"score_arithmetic" not in older.to_bytes()
    assert RoundRecord.model_validate_json(older.to_bytes()) == older
    for wrong in (0, -1, 2**31, "two", 1.5):
        with pytest.raises(ValidationError, match="score_arithmetic"):
            RoundRecord.model_validate({**record.model_dump(), "score_arithmetic": wrong})


@pytest.mark.parametrize("arithmetic", [None, SCORE_ARITHMETIC + 1])
def test_scores_that_another_arithmetic_rounds_otherwise_are_not_called_wrong(plain: Proof, arithmetic: int | None) -> None:
    evidence, stored = plain
    agreement = evidence.record.members[0].agreement
    assert agreement is not None
    rounded = change_member(evidence, agreement=agreement * (1 - 1e-9))
    found = look(of(rounded, arithmetic), stored)
    assert (found["result"].is_ok, found["scores"].is_ok) == (True, None)
    theirs = "arithmetic of before records named one" if arithmetic is None else f"arithmetic {arithmetic},"
    assert theirs in found["scores"].found
    assert f"this release computes them by arithmetic {SCORE_ARITHMETIC}" in found["scores"].found
    assert look(of(rounded, SCORE_ARITHMETIC), stored)["scores"].is_ok is False


@pytest.mark.parametrize("arithmetic", [None, SCORE_ARITHMETIC, SCORE_ARITHMETIC + 1])
@pytest.mark.parametrize("agreement", [0.5, None])
def test_no_arithmetic_excuses_scores_that_differ_by_more(plain: Proof, arithmetic: int | None, agreement: float | None) -> None:
    evidence, stored = plain
    assert look(of(change_member(evidence, agreement=agreement), arithmetic), stored)["scores"].is_ok is False


@pytest.mark.parametrize("arithmetic", [None, SCORE_ARITHMETIC + 1])
def test_what_comes_out_the_same_is_proved_whatever_the_record_names(plain: Proof, defended: Proof, arithmetic: int | None) -> None:
    for evidence, stored in (plain, defended):
        found = look(of(evidence, arithmetic), stored)
        assert {name: check.is_ok for name, check in found.items() if name != "version"} == dict.fromkeys(set(found) - {"version"}, True)


def test_a_result_that_needs_no_inner_products_is_wrong_under_any_arithmetic(plain: Proof) -> None:
    """Nor does a record that names a defence, which the job does not, change that."""
    evidence, stored = plain
    for fields in ({}, {"defence": GeometricMedian()}):
        found = look(of(change_member(evidence, weight=0.9), SCORE_ARITHMETIC + 1, **fields), stored)
        assert (found["result"].is_ok, found["scores"].is_ok, found["version"].is_ok) == (False, None, None)


def test_weights_that_another_arithmetic_rounds_otherwise_are_not_called_wrong(defended: Proof) -> None:
    """Where the result follows from them."""
    evidence, stored = defended
    weights = [member.weight * factor for member, factor in zip(evidence.record.members, ROUNDED, strict=True)]
    other = weighed(evidence, stored, weights)
    for arithmetic in (None, SCORE_ARITHMETIC + 1):
        found = look(of(other, arithmetic), stored)
        assert found["result"].is_ok is None
        assert "the result follows from the record's weights, which under this defence are the same but for" in found["result"].found
    same = look(other, stored)
    assert (same["result"].is_ok, same["scores"].is_ok) == (False, None)


@pytest.mark.parametrize("arithmetic", [None, SCORE_ARITHMETIC, SCORE_ARITHMETIC + 1])
@pytest.mark.parametrize("weights", [(0.25, 0.5, 0.25), (1.0, 0.0, 0.0), (1000.0, 0.0, 0.0)])
def test_no_arithmetic_excuses_weights_that_the_service_has_made_up(
    defended: Proof, arithmetic: int | None, weights: Sequence[float]
) -> None:
    """Though all else in the record follows from them."""
    evidence, stored = defended
    found = look(of(weighed(evidence, stored, weights), arithmetic), stored)
    assert (found["result"].is_ok, found["scores"].is_ok, found["version"].is_ok) == (False, None, None)


@pytest.mark.parametrize("weight", [0.9, 0.0, -0.1, 1e308])
def test_a_result_that_does_not_follow_from_the_weights_is_wrong_under_any_arithmetic(defended: Proof, weight: float) -> None:
    evidence, stored = defended
    odd = of(change_member(evidence, weight=weight), SCORE_ARITHMETIC + 1)
    assert look(odd, stored)["result"].is_ok is False
    rotten = {**stored, evidence.record.members[0].tensors: b"rotten"}
    assert look(of(evidence, None), rotten)["result"].is_ok is False


def weighed(evidence: RoundEvidence, stored: dict[str, bytes], weights: Sequence[float]) -> RoundEvidence:
    """The evidence of a round with these weights: in every other respect it is right."""
    members = tuple(member.model_copy(update={"weight": weight}) for member, weight in zip(evidence.record.members, weights, strict=True))
    record = evidence.record.model_copy(update={"members": members})
    proof = _Proof(changed(evidence, record=record), stored.__getitem__, None, None)
    outcome = proof._combine(proof._sent_with_weights())
    assert not isinstance(outcome, Refused)
    result = {"result": digest_of(write_state(outcome.state)), "measures": dict(outcome.measures)}
    return changed(evidence, record=record.model_copy(update=result))
