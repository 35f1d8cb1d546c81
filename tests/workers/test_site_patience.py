"""What a site waits for: a server that is gone, one that never comes, and a clock that somebody sets right."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.orchestrator.serving import listening
from tests.workers.site_world import World
from tests.workers.test_site import wait_until, world
from wegeft.contracts.errors import ServiceUnreachable
from wegeft.contracts.job import DatasetSpec
from wegeft.contracts.training import JobState
from workers.site import SiteRunner
from workers.site_inputs import SiteOptions
from workers.site_patience import LONGEST_PAUSE_SECONDS

__all__ = ["world"]


def test_outage_of_the_server_is_waited_out(world: World) -> None:
    job_id = world.submit(rounds=2, min_sites=1)
    with listening(world.server.app()) as url:
        member = world.join(job_id, "a", approve=False)
        member.home.keep_record(member.home.read_record().model_copy(update={"server": url}))
        running = threading.Thread(target=member.run)
        running.start()
        wait_until(lambda: "waiting to be approved" in member.texts)
    wait_until(lambda: "trying again" in member.texts)
    with listening(world.server.app(), int(url.rpartition(":")[2])):
        world.api("POST", f"/jobs/{job_id}/sites/a/approve")
        running.join(60)
    assert "the server answers again" in member.texts
    assert [entry.receipt is not None for entry in member.journal.entries()] == [True, True]


def test_server_that_never_answers_is_given_up_in_the_time_that_was_said(world: World) -> None:
    member = world.join(world.submit(min_sites=1), "a")
    member.home.keep_record(member.home.read_record().model_copy(update={"server": "http://127.0.0.1:9"}))
    passed: list[float] = []
    member.sleep = passed.append
    around = replace(member.around, monotonic=lambda: sum(passed))
    options = SiteOptions(data=[DatasetSpec(path=str(member.data))], patience=timedelta(minutes=10))
    with member.client() as client, pytest.raises(ServiceUnreachable):
        SiteRunner(member.home, client, options, around).run()
    assert 600 <= sum(passed) < 660
    assert max(passed) == LONGEST_PAUSE_SECONDS
    assert member.texts.count("trying again") == 1


def test_wrong_clock_is_told_and_waited_for(world: World) -> None:
    member = world.join(world.submit(rounds=1, min_sites=1), "a", lead=timedelta(minutes=-12))

    def set_clock(_seconds: float) -> None:
        member.lead = timedelta()

    member.sleep = set_clock
    assert member.run() is JobState.SUCCEEDED
    assert re.search(r"clock is 7\d\d s behind the server's", member.texts)
