"""Going back to an earlier round: the state of that round in full, new numbers, a record, and the same bytes wherever a server dies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from hub import catalog
from hub.objects import read_verified
from hub.publication import Publication
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.federation_files import read_state
from orchestrator.ledger import federations, rollbacks, rounds, sites
from orchestrator.ledger.rounds import RoundKey
from orchestrator.rollbacks import roll_back
from orchestrator.round_steps import Steps
from orchestrator.update_intake import Caller
from tests.orchestrator.federating import train
from tests.orchestrator.samples import at
from tests.orchestrator.test_federation_crashes import Killed, Story
from wegeft.contracts.adapter import AdapterName, AliasMove
from wegeft.contracts.errors import AliasMoved, Conflict, IllegalTransition, InvalidRequest, NotFound, StaleRound
from wegeft.contracts.federation import Offer
from wegeft.contracts.rollback import Rollback, RollbackRequest
from wegeft.contracts.training import JobState

SUMS = AdapterName.parse("local/sums")
ORDER = (0, 1)


def begin(engine: Engine, **section: Any) -> Story:
    """A federation that two sites have joined."""
    story = Story(engine, **{"rounds": 3, "min_sites": 2, "server_optimizer": "fedadam", **section})
    story.join(*ORDER)
    return story


def commit(story: Story, number: int) -> None:
    """Go on until so many rounds are committed, and the next one collects."""
    while len(story.server.results(story.job_id)) < number:
        story.time += 0.1
        story.tick()
        if len(story.server.results(story.job_id)) == number:
            return
        for index in ORDER:
            story.time += 0.1
            story.answer(index)


def go_back(story: Story, to: int | str, reason: str = "it got worse") -> tuple[Rollback, bool]:
    with writing(story.server.engine) as connection:
        return roll_back(connection, story.job_id, RollbackRequest(to=to, reason=reason), "ada", story.clock())


def offer_to(story: Story, index: int) -> Offer:
    with reading(story.server.engine) as connection:
        offer = rounds.find_open_offer(connection, story.job_id, f"s-{index}")
    assert offer is not None
    return offer


def versions(story: Story) -> list[tuple[int, str]]:
    """Every version and the round that published it, oldest first."""
    with reading(story.server.engine) as connection:
        found = catalog.list_versions(connection, SUMS, 100, None).versions
    return [(one.version, one.source.rpartition(":")[2]) for one in reversed(found)]


def alias(story: Story, name: str) -> int | None:
    with reading(story.server.engine) as connection:
        return catalog.find_adapter(connection, SUMS).aliases.get(name)


def test_a_running_federation_goes_on_from_the_whole_state_of_the_earlier_round(engine: Engine) -> None:
    story = begin(engine)
    commit(story, 2)
    story.answer(0)
    late = offer_to(story, 1)
    done, is_new = go_back(story, 1)
    assert is_new
    assert (done.number, done.to_round, done.opened_round, done.person, done.reason) == (1, 1, 4, "ada", "it got worse")
    assert done.cancelled is not None
    assert (done.cancelled.round, done.cancelled.attempt, late.round) == (3, 1, 3)
    with reading(engine) as connection:
        site = sites.find_site(connection, "s-1")
    with pytest.raises(StaleRound) as told:
        story.intake.take_update(Caller(job_id=story.job_id, site=site), train(late, 1)[0])
    assert [(problem.path, problem.value) for problem in told.value.problems] == [("round", "4")]
    story.run(ORDER)
    seen = story.server.rounds(story.job_id)
    assert [(view.round, view.state.value) for view in seen] == [
        (1, "committed"), (2, "committed"), (3, "failed"), (4, "committed"), (5, "committed")
    ]  # fmt: skip
    records = {view.round: view.record for view in seen}
    assert records[3] is not None
    assert records[3].failure == "rolled_back"
    assert records[4] is not None
    assert records[1] is not None
    assert records[4].start == records[1].result == done.start
    before, after = (read_state(read_verified(story.server.store, str(digest), 1 << 30)) for digest in (done.start, records[4].result))
    assert (before.rounds, after.rounds) == (1, 2)
    assert before.moments.keys() == after.moments.keys() != set()
    assert versions(story) == [(1, "1"), (2, "2"), (3, "4"), (4, "5")]
    view = story.server.view(story.job_id)
    assert (view.state, view.step, view.result.version if view.result else 0) == (JobState.SUCCEEDED, 3, 4)


def test_the_same_again_changes_nothing_until_a_round_is_committed(engines: Iterator[Engine]) -> None:
    engine = next(engines)
    story = begin(engine, rounds=5)
    commit(story, 2)
    first, _ = go_back(story, 1)
    assert go_back(story, "local/sums@1", "again") == (first, False)
    story.tick()
    assert go_back(story, 1) == (first, False)
    commit(story, 3)
    second, is_new = go_back(story, 1)
    assert (is_new, second.number, second.opened_round) == (True, 2, 6)
    third, _ = go_back(story, 0, "from the beginning")
    with reading(engine) as connection:
        beginning = rounds.find_start(connection, RoundKey(job_id=story.job_id, number=1))
        assert rollbacks.list_rollbacks(connection, story.job_id) == (first, second, third)
        assert rollbacks.list_counting(connection, story.job_id) == ()
    assert third.start == beginning
    story.run(ORDER)
    with reading(engine) as connection:
        assert rollbacks.list_counting(connection, story.job_id) == (7, 8, 9, 10, 11)
        texts = [str(record.event) for record in ledger.read_events(connection, story.job_id, 0, 1000).records]
    assert any("ada went back to round 0: from the beginning; round 7 starts from it" in text for text in texts)


@pytest.mark.parametrize("stride", [61, pytest.param(3, marks=pytest.mark.soak)])
def test_a_server_that_dies_at_any_step_around_it_comes_to_the_same_bytes(engines: Iterator[Engine], stride: int) -> None:
    quiet = tell(next(engines), dies_at=-1)
    expected, steps = quiet.server.results(quiet.job_id), quiet.fate.steps
    assert (len(expected), quiet.deaths) == (4, 0)
    for dies_at in range(1, steps + 1, stride):
        story = tell(next(engines), dies_at=dies_at)
        assert (story.deaths, story.server.results(story.job_id)) == (1, expected), f"died at step {dies_at}"
        with reading(story.server.engine) as connection:
            assert len(rollbacks.list_rollbacks(connection, story.job_id)) == 1, f"died at step {dies_at}"
        assert [view.round for view in story.server.rounds(story.job_id)] == [1, 2, 3, 4, 5], f"died at step {dies_at}"


def tell(engine: Engine, dies_at: int) -> Story:
    """A federation that goes back once, by a server that may die around it; whoever asked asks again."""
    story = begin(engine)
    story.fate.dies_at = dies_at
    commit(story, 2)
    story.tick()
    story.fate.is_driving = True
    try:
        go_back(story, 1)
    except Killed:
        story.deaths += 1
        story.time += 6
        story.driver = story.server.driver()
        go_back(story, 1)
    finally:
        story.fate.is_driving = False
    story.run(ORDER)
    return story


@pytest.mark.parametrize("max_failed_rounds", [0, 3])
def test_a_driver_that_looked_before_neither_tries_again_nor_ends_what_was_undone(
    engines: Iterator[Engine], max_failed_rounds: int
) -> None:
    story = begin(next(engines), deadline="10s", max_failed_rounds=max_failed_rounds)
    commit(story, 1)
    story.tick()
    held = story.driver._held[story.job_id].lease
    with reading(story.server.engine) as connection:
        job = federations.find_federated(connection, story.job_id)
    steps = Steps(services=story.server.services, job=job, lease=held, renew=lambda: None)
    go_back(story, 0)
    with pytest.raises(Conflict, match="gone on"):
        steps._try_again(RoundKey(job_id=story.job_id, number=2), story.clock())
    seen = [(view.round, view.attempt, view.state.value) for view in story.server.rounds(story.job_id)]
    assert seen[-2:] == [(2, 1, "failed"), (3, 1, "selecting")]
    assert story.server.view(story.job_id).state is JobState.RUNNING


def test_the_aliases_of_an_ended_job_move_back(engine: Engine) -> None:
    story = begin(engine, job={"output": {"adapter": "local/sums", "aliases": ["production", "best"]}})
    story.run(ORDER)
    assert (alias(story, "production"), alias(story, "best")) == (3, 3)
    done, _ = go_back(story, "local/sums@2")
    assert done.opened_round is None
    assert [(one.alias, one.before, one.after) for one in done.aliases] == [("production", 3, 2), ("best", 3, 2)]
    assert go_back(story, 2) == (done, False)
    assert (alias(story, "production"), alias(story, "best"), alias(story, "latest")) == (2, 2, 3)
    forward, _ = go_back(story, 3)
    assert (forward.number, alias(story, "production")) == (2, 3)
    point(story, 1, "production", "best")
    with pytest.raises(Conflict, match="already"):
        go_back(story, 1)
    point(story, 3, "production")
    done, _ = go_back(story, 2)
    assert [(one.alias, one.before) for one in done.aliases] == [("production", 3), ("best", 1)]


def point(story: Story, version: int, *names: str) -> None:
    """Let aliases point to a version, as a person does."""
    with writing(story.server.engine) as connection:
        for name in names:
            catalog.set_alias(connection, SUMS, name, AliasMove(version=version), at(500))


def test_what_cannot_be_is_refused_and_changes_nothing(engines: Iterator[Engine]) -> None:
    waiting = Story(next(engines))
    with pytest.raises(NotFound):
        go_back(waiting, 0)
    story = begin(next(engines), rounds=2)
    commit(story, 1)
    for wrong in (2, 9, "local/sums@7", "local/others@1"):
        with pytest.raises(NotFound):
            go_back(story, wrong)
    with writing(story.server.engine) as connection:
        ledger.cancel(connection, story.job_id, story.clock())
    with pytest.raises(IllegalTransition):
        go_back(story, 1)
    story.tick()
    with pytest.raises(InvalidRequest, match="moves no alias"):
        go_back(story, 1)
    with pytest.raises(InvalidRequest, match="nothing was published"):
        go_back(story, 0)
    with reading(story.server.engine) as connection:
        assert rollbacks.list_rollbacks(connection, story.job_id) == ()


def test_an_alias_that_points_to_somebody_elses_version_stays(engines: Iterator[Engine]) -> None:
    story = begin(next(engines), job={"output": {"adapter": "local/sums", "aliases": ["production"]}})
    story.run(ORDER)
    other = begin_other(story)
    point(story, other, "production")
    with pytest.raises(AliasMoved) as told:
        go_back(story, 1)
    assert told.value.problems[0].path == "production"
    assert alias(story, "production") == other
    with pytest.raises(NotFound, match="not published by this federation"):
        go_back(story, f"local/sums@{other}")


def begin_other(story: Story) -> int:
    """Publish a version of the same adapter that no round of this federation has made; return its number."""
    with writing(story.server.engine) as connection:
        view = catalog.list_versions(connection, SUMS, 1, None).versions[0]
        publication = Publication(
            adapter=SUMS, files=tuple(view.manifest.files), source="job:other", base_model=view.base_model, method=view.method,
            rank=view.rank, created_by="bob",
        )  # fmt: skip
        return catalog.publish(connection, publication, at(400)).version


def test_what_the_wire_cut_off_in_undone_rounds_is_owed_no_more(engine: Engine) -> None:
    """Each offer names the site's last update that is in what it starts from; with round 2 undone, that is the one of round 1 again."""
    story = begin(engine, wire="int8")
    commit(story, 2)
    sent = {view.round: view.record.members[0].tensors for view in story.server.rounds(story.job_id) if view.record}
    assert counted_in(offer_to(story, 0)) == sent[2]
    for to, expected in ((1, sent[1]), (0, None)):
        go_back(story, to)
        story.time += 0.1
        story.tick()
        assert counted_in(offer_to(story, 0)) == expected
    assert len(set(sent.values())) == 2


def counted_in(offer: Offer) -> str | None:
    assert offer.feedback is not None
    return offer.feedback.counted


def test_where_the_wire_cuts_nothing_off_nothing_is_owed_or_kept(engine: Engine) -> None:
    story = begin(engine)
    commit(story, 1)
    assert offer_to(story, 0).feedback is None
    assert read_state(read_verified(story.server.store, story.server.results(story.job_id)[0], 1 << 30)).counted == {}
