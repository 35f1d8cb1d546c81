"""SCAFFOLD's control variates are part of the state that a round ends in: no death changes them, and no site that joins meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import Engine

from hub.objects import read_verified
from infra.database import reading
from orchestrator.federation_files import read_state
from orchestrator.ledger import rounds
from orchestrator.ledger.rounds import RoundKey
from tests.orchestrator.test_federation_crashes import Story, tell
from wegeft.contracts.control_variates import control_of
from wegeft.contracts.wire import read_update

SECTION = {"rule": {"name": "freeze_psi"}, "site_optimizer": "scaffold", "wire": "int8"}


@pytest.mark.parametrize("stride", [41, pytest.param(1, marks=pytest.mark.soak)])
def test_a_server_may_die_before_any_step_of_a_round_with_control_variates(engines: Iterator[Engine], stride: int) -> None:
    quiet = tell(next(engines), **SECTION)
    expected = quiet.server.results(quiet.job_id)
    assert len(set(expected)) == 2
    for dies_at in range(1, quiet.fate.steps + 1, stride):
        story = tell(next(engines), dies_at=dies_at, **SECTION)
        assert (story.deaths, story.server.results(story.job_id)) == (1, expected), f"died at step {dies_at}"


def test_state_is_the_sum_of_what_was_sent_and_names_who_was_counted(engines: Iterator[Engine]) -> None:
    story = tell(next(engines), **SECTION)
    records = [view.record for view in story.server.rounds(story.job_id)]
    total: dict[str, np.ndarray] = {}
    for record in records:
        assert record is not None
        assert record.control_sites == 3
        for member in record.members:
            tensors = read_update(read_verified(story.server.store, member.tensors, 1 << 20), "int8")
            for name in ("q_proj.phi", "down_proj.phi"):
                total[name] = total.get(name, 0.0) + tensors[control_of(name)].astype(np.float64)
        assert record.result is not None
        state = read_state(read_verified(story.server.store, record.result, 1 << 20))
        assert state.counted == {member.site: member.tensors for member in record.members}
    assert state.controls.keys() == total.keys()
    for name, summed in total.items():
        np.testing.assert_allclose(state.controls[name], summed, atol=1e-15)


def test_number_of_sites_is_the_one_that_the_offers_name(engines: Iterator[Engine]) -> None:
    """A site that is approved while others train changes neither this round's record nor its digest."""
    plain, joined = (Story(next(engines), rounds=1, min_sites=2, **SECTION) for _ in range(2))
    for story in (plain, joined):
        story.join(0, 1)
        story.tick()
    joined.join(2)
    for story in (plain, joined):
        for index in (0, 1):
            story.answer(index)
        story.tick()
        with reading(story.server.engine) as connection:
            offer = rounds.find_offer(connection, RoundKey(job_id=story.job_id, number=1), "s-0")
        assert offer is not None
        assert offer.control is not None
        record = story.server.rounds(story.job_id)[0].record
        assert record is not None
        assert (offer.control.sites, record.control_sites) == (2, 2)
    assert plain.server.results(plain.job_id) == joined.server.results(joined.job_id)
