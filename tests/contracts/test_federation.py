"""What server and sites say to each other: one way to write it, signatures, policies."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from wegeft.contracts.federation import Decline, Offer, Receipt, RoundState, TensorForm, Update
from wegeft.contracts.federation_rules import FactorMean
from wegeft.contracts.signatures import check_freshness, is_signed, public_key_of, request_content, sign
from wegeft.contracts.site_policy import SitePolicy

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DIGEST = "sha256:" + "a" * 64
KEY = bytes(range(32))


def an_offer(**changes: object) -> Offer:
    fields: dict[str, object] = {
        "job_id": "j1", "round": 3, "site": "s-1", "base_model": "org/model@abc", "start": DIGEST, "rank": 4, "rule": FactorMean(),
        "tensors": {"q_proj.phi": TensorForm(shape=(8, 4)), "q_proj.psi": TensorForm(shape=(4, 8))}, "max_update_norm": 10.0,
        "deadline_at": NOW,
    }  # fmt: skip
    return Offer.model_validate(fields | changes)


def an_update(**changes: object) -> Update:
    fields: dict[str, object] = {
        "job_id": "j1", "round": 3, "site": "s-1", "offer": DIGEST, "base_model": "org/model@abc", "start": DIGEST, "tensors": DIGEST,
        "size": 100, "examples": 7, "steps": 5, "metrics": {"train_loss": 0.1},
    }  # fmt: skip
    return Update.model_validate(fields | changes)


def test_equal_messages_have_equal_bytes_and_survive_the_wire() -> None:
    offer = an_offer()
    assert Offer.model_validate_json(offer.to_bytes()) == offer
    shuffled = json.loads(offer.to_bytes())
    shuffled["tensors"] = dict(reversed(shuffled["tensors"].items()))
    shuffled["deadline_at"] = NOW.astimezone(timezone(timedelta(hours=5))).isoformat()
    assert Offer.model_validate_json(json.dumps(shuffled)).digest == offer.digest
    assert b" " not in offer.to_bytes()


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 10**6))
def test_numbers_keep_their_bytes(loss: float, examples: int) -> None:
    update = an_update(metrics={"train_loss": loss}, examples=examples)
    assert Update.model_validate_json(update.to_bytes()).to_bytes() == update.to_bytes()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(loss: float) -> None:
    with pytest.raises(ValidationError):
        an_update(metrics={"train_loss": loss})


@pytest.mark.parametrize("change", [{"version": 3}, {"round": 0}, {"start": "sha256:x"}, {"site": "a b"}, {"surprise": 1}])
def test_messages_of_another_protocol_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        an_update(**change)


def test_times_without_an_offset_are_refused() -> None:
    with pytest.raises(ValidationError):
        Receipt(job_id="j", round=1, attempt=1, site="s", update=DIGEST, tensors=DIGEST, received_at=datetime(2026, 1, 1))  # noqa: DTZ001


def test_a_decline_has_one_of_two_reasons() -> None:
    Decline.model_validate({"job_id": "j", "round": 1, "site": "s", "reason": "declined"})
    with pytest.raises(ValidationError):
        Decline.model_validate({"job_id": "j", "round": 1, "site": "s", "reason": "late"})


def test_two_round_states_are_final() -> None:
    assert {state for state in RoundState if state.is_final} == {RoundState.COMMITTED, RoundState.FAILED}


@settings(deadline=None)
@given(st.binary(max_size=64), st.integers(0, 63), st.integers(0, 7))
def test_a_signature_holds_for_its_content_and_key_only(content: bytes, place: int, bit: int) -> None:
    public, signature = public_key_of(KEY), sign(KEY, content)
    assert is_signed(public, content, signature)
    assert not is_signed(public, content + b"x", signature)
    assert not is_signed(public_key_of(bytes(32)), content, signature)
    raw = bytearray.fromhex(signature.removeprefix("ed25519:"))
    raw[place] ^= 1 << bit
    assert not is_signed(public, content, "ed25519:" + raw.hex())


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:zz", "rsa:00", "ed25519:" + "0" * 64, "ed25519:" + "f" * 128])
def test_malformed_keys_and_signatures_sign_nothing(text: str) -> None:
    assert not is_signed(text, b"content", sign(KEY, b"content"))
    assert not is_signed(public_key_of(KEY), b"content", text)


def test_a_key_of_the_published_test_vectors() -> None:
    """RFC 8032, section 7.1, test 2."""
    private = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    assert public_key_of(private) == "ed25519:3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    expected = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert sign(private, b"\x72") == "ed25519:" + expected


def test_a_request_signs_all_that_could_be_changed() -> None:
    plain = ("POST", "/api/v1/x?y=1", b"body", NOW.isoformat(), "n1")
    others = [
        ("PUT", *plain[1:]),
        ("POST", "/api/v1/x", *plain[2:]),
        (*plain[:2], b"Body", *plain[3:]),
        (*plain[:3], "t", "n1"),
        (*plain[:4], "n2"),
    ]
    assert len({request_content(*arguments) for arguments in [plain, *others]}) == 6
    assert request_content("post", *plain[1:]) == request_content(*plain)


@pytest.mark.parametrize(
    ("timestamp", "message"),
    [
        (NOW.isoformat(), None),
        ((NOW + timedelta(seconds=299)).isoformat(), None),
        ((NOW - timedelta(seconds=301)).isoformat(), "more than 5 min"),
        ((NOW + timedelta(seconds=301)).isoformat(), "more than 5 min"),
        ("2026-11-21T12:00:00", "no offset"),
        ("yesterday", "not an ISO 8601"),
    ],
)
def test_stale_requests_are_told_why(timestamp: str, message: str | None) -> None:
    problem = check_freshness(timestamp, NOW)
    assert (problem is None) if message is None else (problem is not None and message in problem.message)


def test_a_policy_that_says_nothing_allows_everything() -> None:
    assert SitePolicy().problems_with(an_offer()) == []


def test_a_policy_names_everything_that_it_forbids() -> None:
    policy = SitePolicy(allowed_base_models=("org/other@*",), allowed_rules=("core",), max_steps=10, max_rank=2, max_upload_bytes=100)
    assert [problem.path for problem in policy.problems_with(an_offer())] == ["base_model", "rule", "max_steps", "rank", "max_upload_bytes"]
    allowed = SitePolicy(
        allowed_base_models=("org/model@*",), allowed_rules=("factor_mean",), max_steps=10, max_rank=4, max_upload_bytes=256
    )
    assert allowed.problems_with(an_offer(max_steps=10)) == []


def test_a_policy_counts_bytes_as_they_travel() -> None:
    policy = SitePolicy(max_upload_bytes=100)
    assert [bool(policy.problems_with(an_offer(wire=wire, max_steps=1))) for wire in ("fp32", "bf16", "int8")] == [True, True, False]


def test_a_star_is_only_a_closing_one() -> None:
    assert SitePolicy(allowed_base_models=("org/*l@abc",)).problems_with(an_offer())
