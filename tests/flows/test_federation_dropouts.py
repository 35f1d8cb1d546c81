"""Sites that drop out of rounds at random keep no round open: each ends by its deadline, and the federation comes to its end."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from infra.database import reading
from orchestrator.ledger import rounds
from orchestrator.ledger.rounds import RoundKey
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.test_federation_crashes import Story
from wegeft.contracts.enrolment import RoundView
from wegeft.contracts.federation import ReasonCode, RoundState

DROPOUT = 0.4
DEADLINE_SECONDS, GRACE_SECONDS, SLOWEST_SECONDS, TICK_SECONDS = 60, 10, 50, 10


class Flock:
    """Sites, each of which answers a round after a while, or with chance ``DROPOUT`` not at all."""

    def __init__(self, story: Story, count: int, seed: int) -> None:
        self._story = story
        self._indices = tuple(range(count))
        self._random = random.Random(seed)
        self._due: dict[int, float] = {}
        self._asked: RoundKey | None = None
        story.join(*self._indices)

    def live(self) -> None:
        """Do what is due now in the newest round."""
        story = self._story
        with reading(story.server.engine) as connection:
            newest = rounds.last_round(connection, story.job_id)
        if newest is None or newest[1] is not RoundState.COLLECTING:
            return
        if newest[0] != self._asked:
            self._asked = newest[0]
            answering = [index for index in self._indices if self._random.random() >= DROPOUT]
            self._due = {index: story.time + self._random.uniform(0, SLOWEST_SECONDS) for index in answering}
        for index in [index for index, at in self._due.items() if at <= story.time]:
            del self._due[index]
            story.answer(index)


def federate(folder: Path, rounds_: int, count: int, least: int, seed: int) -> list[RoundView]:
    """Run a whole federation on a clock of its own; return every try at every round."""
    story = Story(
        new_sqlite(folder / "a.db"),
        rounds=rounds_,
        min_sites=least,
        grace=f"{GRACE_SECONDS}s",
        deadline=f"{DEADLINE_SECONDS}s",
        max_failed_rounds=50,
    )
    flock = Flock(story, count, seed)
    for _ in range(100 * rounds_):
        story.time += TICK_SECONDS
        story.tick()
        if story.server.view(story.job_id).state.is_final:
            break
        flock.live()
    assert story.server.view(story.job_id).state == "succeeded"
    views = story.server.rounds(story.job_id)
    story.server.engine.dispose()
    return views


def check(views: list[RoundView], rounds_: int, count: int, least: int) -> None:
    """Every round was committed once, each try ended in time, and everybody who is not in it is there with a reason."""
    assert [view.round for view in views if view.state == "committed"] == list(range(1, rounds_ + 1))
    reasons: Counter[ReasonCode] = Counter()
    for view in views:
        assert view.record is not None
        assert (view.record.closed_at - view.record.created_at).total_seconds() <= DEADLINE_SECONDS + TICK_SECONDS
        assert (len(view.record.members) >= least) == (view.state == "committed")
        if view.state == "committed":
            assert len(view.record.members) + len(view.record.left_out) == count
        reasons.update(exclusion.reason for exclusion in view.record.left_out)
    assert set(reasons) == {ReasonCode.NO_ANSWER}
    assert any(view.state == "failed" for view in views)


def test_rounds_end_in_time_although_sites_drop_out(tmp_path: Path) -> None:
    check(federate(tmp_path, 6, 5, 3, seed=2), 6, 5, 3)


@pytest.mark.soak
def test_a_hundred_rounds_end_in_time_although_sites_drop_out(tmp_path: Path) -> None:
    seed = int(os.environ.get("SOAK_SEED", "1"))
    check(federate(tmp_path, 100, 20, 12, seed), 100, 20, 12)
