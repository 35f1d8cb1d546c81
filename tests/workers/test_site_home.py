"""A site's folder: its key stays its own, its enrolment is one, and its policy says everything that is wrong with it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.orchestrator.samples import make_spec
from tests.workers.site_rounds import make_state, offer_of, site_spec, tiny_base
from wegeft.contracts.enrolment import Enrolment
from wegeft.contracts.errors import AlreadyRunning, Conflict, InvalidSetting, NotFound
from wegeft.contracts.federation import Site, SiteState
from wegeft.contracts.signatures import public_key_of
from wegeft.contracts.site_policy import SitePolicy
from workers.site_home import SiteHome, SiteRecord, agreed_policy, pinned_name

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    home = SiteHome(tmp_path / "site")
    home.prepare()
    return home


def record_of(key: bytes, pseudonym: str = "site-1") -> SiteRecord:
    site = Site(name="a", pseudonym=pseudonym, public_key=public_key_of(key), state=SiteState.PENDING, max_examples=9, enrolled_at=NOW)
    spec = make_spec(datasets=[], federation={"rule": "freeze_psi"}, base_model_revision="v1", max_steps=7, rank=4)
    return SiteRecord(
        server="http://127.0.0.1:1", enrolment=Enrolment(job_id="job", site=site, server_key=public_key_of(bytes(32)), spec=spec)
    )


def test_key_is_made_once_for_its_owner_alone(home: SiteHome) -> None:
    key = home.ensure_key()
    assert home.ensure_key() == home.read_key() == key
    assert len(key) == 32
    assert home.key_file.stat().st_mode & 0o777 == 0o600
    assert home.folder.stat().st_mode & 0o777 == 0o700


def test_key_that_others_may_read_or_that_is_none_is_refused(home: SiteHome) -> None:
    with pytest.raises(NotFound, match="enrol"):
        home.read_key()
    home.ensure_key()
    home.key_file.chmod(0o644)
    with pytest.raises(InvalidSetting, match="chmod 600"):
        home.ensure_key()
    home.key_file.chmod(0o600)
    for text in ("", "zz" * 32, "ab" * 31):
        home.key_file.write_text(text)
        with pytest.raises(InvalidSetting, match="64 hex digits"):
            home.ensure_key()


def test_enrolment_is_kept_and_belongs_to_one_site(home: SiteHome) -> None:
    with pytest.raises(NotFound, match="wgctl site enrol"):
        home.read_record()
    record = record_of(home.ensure_key())
    home.keep_record(record)
    home.keep_record(record)
    assert home.read_record() == record
    assert home.credentials().private_key == home.read_key()
    assert home.read_key().hex() not in repr(home.credentials())
    with pytest.raises(Conflict, match="its own folder"):
        home.keep_record(record_of(home.ensure_key(), "site-2"))
    home.record_file.write_text("{}")
    with pytest.raises(InvalidSetting, match="enrolment"):
        home.read_record()


def test_folder_is_one_process_at_a_time(home: SiteHome) -> None:
    with home.locked(), pytest.raises(AlreadyRunning), home.locked():
        pass
    with home.locked():
        pass


def test_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match="--home"):
        SiteHome(tmp_path / "file" / "site").prepare()


def test_policy_is_what_was_agreed_and_then_the_owners(home: SiteHome) -> None:
    assert home.read_policy() == SitePolicy()
    agreed = agreed_policy(record_of(home.ensure_key()).enrolment.spec)
    home.keep_policy(agreed)
    assert home.read_policy() == agreed
    assert agreed.allowed_base_models == ("org/model@v1",)
    assert (agreed.allowed_rules, agreed.max_steps, agreed.max_rank, agreed.max_update_norm) == (("freeze_psi",), 7, 4, 1e3)
    home.policy_file.write_text("max_steps: 3\n")
    home.keep_policy(agreed)
    assert home.read_policy() == SitePolicy(max_steps=3)
    home.policy_file.write_text("")
    assert home.read_policy() == SitePolicy()


def test_agreed_policy_lets_the_offers_of_that_job_through() -> None:
    base, spec = tiny_base(), site_spec(federation={}, datasets=[])
    offer, _ = offer_of(make_state(spec, base), base_model=pinned_name(spec), max_steps=spec.max_steps)
    assert agreed_policy(spec).problems_with(offer) == []
    assert agreed_policy(spec).problems_with(offer.model_copy(update={"base_model": "other/model", "rank": 8})) != []


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("max_steps: none\nmax_rank: 0\nsurprise: 1\n", ["policy.yaml: max_steps", "policy.yaml: max_rank", "policy.yaml: surprise"]),
        ("- max_steps\n", ["policy.yaml"]),
        ("max_steps: [1\n", ["policy.yaml"]),
        ("max_steps: 1\nmax_steps: 2\n", ["policy.yaml"]),
    ],
)
def test_policy_tells_everything_that_is_wrong_with_it(home: SiteHome, text: str, matches: list[str]) -> None:
    home.policy_file.write_text(text)
    with pytest.raises(InvalidSetting) as caught:
        home.read_policy()
    told = str(caught.value)
    assert all(match in told for match in matches), told


def test_policy_that_cannot_be_read_does_not_allow_everything(home: SiteHome) -> None:
    home.policy_file.mkdir()
    with pytest.raises(InvalidSetting, match="policy"):
        home.read_policy()
    os.rmdir(home.policy_file)  # noqa: PTH106 - a folder in place of the file
