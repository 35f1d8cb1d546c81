"""What a site lets itself be asked holds before it trains, and a new key takes over what it has trained and not sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workers.site_rounds import make_state, offer_of, site_spec, tiny_base
from tests.workers.site_world import Member, World, running_world
from tests.workers.tiny_runs import Recorder, make_rows
from wegeft.client.site import bind_key
from wegeft.contracts.errors import Conflict, Unauthenticated
from wegeft.contracts.job import JobSpec
from wegeft.contracts.signatures import public_key_of
from wegeft.contracts.site_policy import SitePolicy
from wegeft.contracts.training import JobState, Progress
from workers.base_model import BaseModel
from workers.durable_files import write_durably
from workers.site_journal import Ending
from workers.site_training import Work, planned_steps, train_round


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("federation")) as world:
        yield world


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.mark.parametrize(
    "fields",
    [
        {"num_epochs": 2, "micro_batch_size": 4},
        {"num_epochs": 1.5, "micro_batch_size": 2, "gradient_accumulation_steps": 3, "val_set_size": 2},
        {"num_epochs": 1, "micro_batch_size": 1, "sample_packing": True},
        {"max_steps": 2},
    ],
)
def test_steps_are_counted_as_they_are_made(base: BaseModel, fields: dict[str, float]) -> None:
    spec: JobSpec = site_spec(**{"max_steps": None, **fields})
    offer, start = offer_of(make_state(spec, base), seed=9)
    rows = make_rows(12)
    planned = planned_steps(spec, offer, base, rows)
    trained = train_round(Work(offer=offer, spec=spec, base=base, rows=rows, start=start, max_norm=1e3), Recorder().callbacks())
    assert planned == trained.steps > 0


def test_a_limit_of_steps_holds_where_the_job_names_epochs(world: World) -> None:
    spec = world.spec({"max_steps": None, "num_epochs": 3}, rounds=1, min_sites=1, max_failed_rounds=0)
    job_id = str(world.api("POST", "/jobs", json={"spec": spec})["id"])
    with world.at_rest():
        strict = world.join(job_id, "strict", rows=12, options={"is_once": True})
        write_policy(strict, SitePolicy(max_steps=8))
    assert strict.run() is None
    assert not any(isinstance(event, Progress) for event in strict.events), "it has trained before it looked"
    ended = strict.journal.entries()[0].ended
    assert ended is not None
    assert (ended.ending, [(one.path, one.value) for one in ended.problems]) == (Ending.DECLINED, [("max_steps", "9")])
    view = world.api("GET", f"/jobs/{job_id}/federation")["sites"][0]
    assert (view["last_problem"], [problem["path"] for problem in view["problems"]]) == ("declined", ["max_steps"])


def write_policy(member: Member, policy: SitePolicy) -> None:
    member.home.policy_file.write_text(policy.model_dump_json())


def test_what_was_trained_under_the_old_key_is_sent_under_the_new_one(world: World) -> None:
    job_id = world.submit(rounds=1, min_sites=1)
    with world.at_rest():
        member = world.join(job_id, "turner")
    member.home.folder.chmod(0o700)
    old = member.home.read_key()
    token = world.api("POST", f"/jobs/{job_id}/sites/turner/rotate", json={})["token"]
    new = member.home.ensure_new_key()
    enrolment = bind_key(world.url, token, new)
    with pytest.raises(Unauthenticated):
        member.run()
    # Killed after the server has bound the key, and between any two steps after that: the same command goes on with it.
    write_durably(member.home.key_file, new.hex().encode())
    assert bind_key(world.url, token, member.home.ensure_new_key()) == enrolment
    member.home.take_new_key(enrolment)
    assert not member.home.new_key_file.exists()
    assert member.home.read_key() == new != old
    assert member.home.read_record().enrolment.site.public_key == public_key_of(new)
    assert member.run() is JobState.SUCCEEDED
    assert member.journal.entries()[0].receipt is not None
    foreign = enrolment.model_copy(update={"server_key": public_key_of(bytes(32))})
    member.home.ensure_new_key()
    with pytest.raises(Conflict, match="server's key"):
        member.home.take_new_key(foreign)
    assert member.home.read_key() == new
