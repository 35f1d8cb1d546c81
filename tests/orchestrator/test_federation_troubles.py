"""A step that fails again and again: the federation ends with that error after as many tries as a round has, and counts over restarts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from cli.federation_views import describe
from hub.objects import Readable
from infra.database import reading, writing
from orchestrator import federation_api
from orchestrator.federations import LONGEST_OUTAGE, is_hopeless
from orchestrator.ledger import federations, sites, troubles
from orchestrator.ledger.troubles import Trouble
from orchestrator.update_intake import Caller, kept_problems
from tests.orchestrator.samples import at, new_sqlite
from tests.orchestrator.test_federation_crashes import MortalStore, Story
from wegeft.contracts.errors import InvalidRequest, Problem, StorageFull, StorageUnavailable
from wegeft.contracts.federation import Decline, ReasonCode
from wegeft.contracts.training import JobState


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = new_sqlite(tmp_path / "a.db")
    yield engine
    engine.dispose()


WAIT = "storage_full: the object store's disk is full (1 times at round 1, try 1: aggregating)"


def begin(engine: Engine, **section: Any) -> Story:
    story = Story(engine, **{"rounds": 1, "min_sites": 2, **section})
    story.join(0, 1)
    return story


def rot_all(story: Story) -> None:
    """Change a byte of everything that is stored."""
    blobs = story.server.store._blobs  # type: ignore[attr-defined]
    for digest, content in blobs.items():
        blobs[digest] = content[:-1] + bytes([content[-1] ^ 1])


def test_a_federation_whose_step_always_fails_ends_with_that_error(engine: Engine) -> None:
    story = begin(engine, max_failed_rounds=2)
    story.tick()
    story.answer(0)
    story.answer(1)
    rot_all(story)
    tries = 0
    while not story.server.view(story.job_id).state.is_final:
        story.time += 0.5
        story.driver = story.server.driver() if int(story.time) % 7 == 0 else story.driver
        story.tick()
        with reading(engine) as connection:
            trouble = troubles.find_trouble(connection, story.job_id)
        tries = trouble.tries if trouble else 0
        assert story.time < 300, "it would go on for ever"
    view = story.server.view(story.job_id)
    assert (view.state, view.error.code if view.error else None, tries) == (JobState.FAILED, "digest_mismatch", 3)
    assert view.waiting_for is None
    assert story.time > 15, "it was not waited between the tries"
    record = story.server.rounds(story.job_id)[0].record
    assert record is not None
    assert record.failure == "cancelled"


class SmallStore(MortalStore):
    """A store that can have no room left."""

    is_full = False

    def put(self, digest: str, source: Readable, size: int | None = None) -> int:
        if self.is_full:
            raise StorageFull("the object store's disk is full")
        return super().put(digest, source, size)


def test_a_federation_waits_for_room_in_the_store_until_its_time_is_over(engine: Engine) -> None:
    """It says so, and goes on when there is room, or ends with its ``max_duration``."""
    story = begin(engine, store=SmallStore, rounds=2, job={"max_duration": "10m"})
    story.tick()
    for index in (0, 1):
        story.answer(index)
    store = story.server.store
    assert isinstance(store, SmallStore)
    store.is_full = True
    story.tick()
    view = story.server.view(story.job_id)
    assert (view.state, str(view.waiting_for)) == (JobState.RUNNING, WAIT)
    with reading(engine) as connection:
        assert "waits for storage_full" in describe(federation_api._view(connection, federations.find_federated(connection, story.job_id)))
    store.is_full = False
    story.time += 6
    story.tick()
    assert [one.state for one in story.server.rounds(story.job_id)] == ["committed", "collecting"]
    assert story.server.view(story.job_id).waiting_for is None
    for index in (0, 1):
        story.answer(index)
    store.is_full = True
    while story.time < 600:
        story.time += 60
        story.tick()
    view = story.server.view(story.job_id)
    assert (view.state, view.error.code if view.error else None, view.waiting_for) == (JobState.FAILED, "duration_exceeded", None)


def test_a_step_that_works_again_is_forgotten(engine: Engine) -> None:
    story = begin(engine, max_failed_rounds=2)
    story.tick()
    blobs = story.server.store._blobs  # type: ignore[attr-defined]
    whole = dict(blobs)
    story.answer(0)
    story.answer(1)
    sent = {digest: content for digest, content in blobs.items() if digest not in whole}
    for digest in sent:
        del blobs[digest]
    story.tick()
    assert "blob_not_found" in str(story.server.view(story.job_id).waiting_for)
    story.tick()
    with reading(engine) as connection:
        trouble = troubles.find_trouble(connection, story.job_id)
    assert trouble is not None
    assert (trouble.tries, trouble.place) == (1, "round 1, try 1: aggregating")
    blobs.update(sent)
    story.time += 6
    story.tick()
    assert story.server.view(story.job_id).state is JobState.SUCCEEDED
    with reading(engine) as connection:
        assert troubles.find_trouble(connection, story.job_id) is None


def test_another_step_or_error_counts_from_one(engine: Engine) -> None:
    story = begin(engine)

    def note(place: str, code: str, seconds: float) -> Trouble:
        with writing(engine) as connection:
            return troubles.note_trouble(connection, story.job_id, place, code, at(seconds))

    told = [note("a", "x", 0), note("a", "x", 5), note("a", "y", 20), note("b", "y", 30), note("b", "y", 40)]
    assert [(one.tries, one.since) for one in told] == [(1, at(0)), (2, at(0)), (1, at(20)), (1, at(30)), (2, at(30))]
    assert told[1].next_at == at(15)


@pytest.mark.parametrize(("tries", "max_failed_rounds", "expected"), [(1, 0, True), (1, 1, False), (2, 1, True), (3, 3, False)])
def test_errors_that_do_not_pass_have_as_many_tries_as_a_round(tries: int, max_failed_rounds: int, expected: bool) -> None:
    trouble = Trouble(place="a", code="x", tries=tries, since=at(0), next_at=at(1))
    assert is_hopeless(trouble, InvalidRequest(), max_failed_rounds, at(10**6)) is expected


def test_outages_are_waited_out_for_a_day() -> None:
    trouble = Trouble(place="a", code="x", tries=10**4, since=at(0), next_at=at(1))
    assert not is_hopeless(trouble, StorageUnavailable(), 0, at(0) + LONGEST_OUTAGE - timedelta(seconds=1))
    assert is_hopeless(trouble, StorageUnavailable(), 0, at(0) + LONGEST_OUTAGE)


def test_why_a_site_declined_stands_in_the_record(engine: Engine) -> None:
    story = begin(engine, max_failed_rounds=0)
    story.tick()
    with reading(engine) as connection:
        site = sites.find_site(connection, "s-0")
    problem = Problem(path="max_steps", message="must be 5 or less", value="12")
    decline = Decline(job_id=story.job_id, round=1, site="s-0", reason=ReasonCode.DECLINED, problems=(problem,))
    story.intake.take_decline(Caller(job_id=story.job_id, site=site), decline)
    story.answer(1)
    story.tick()
    record = story.server.rounds(story.job_id)[0].record
    assert record is not None
    assert [(one.site, one.reason.value, one.problems) for one in record.left_out] == [("s-0", "declined", (problem,))]


def test_a_site_that_declines_at_length_does_not_fill_the_record() -> None:
    problems = tuple(Problem(path="x" * 5000, message="y" * 5000, value="z" * 5000, hint="h" * 5000) for _ in range(100))
    decline = Decline(job_id="job", round=1, site="s-0", reason=ReasonCode.DECLINED, problems=problems)
    kept = kept_problems(decline)
    assert len(kept) == 20
    assert len(json.dumps([problem.model_dump() for problem in kept])) < 20_000
