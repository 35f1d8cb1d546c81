"""Whole sites against the real server over real HTTP: what they train is what the server publishes, and nothing is done twice."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from orchestrator.federation_files import read_state
from tests.workers.site_world import Member, World, running_world
from wegeft.client import Client
from wegeft.client.site import SiteClient
from wegeft.contracts.errors import Forbidden, InvalidData, Unauthenticated, UnexpectedAnswer
from wegeft.contracts.job import DatasetSpec
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.tensors import read_tensors
from wegeft.contracts.training import JobState, Progress, WorkerEvent
from workers.site import SiteRunner
from workers.site_inputs import SiteOptions
from workers.site_journal import Ending
from workers.site_preflight import Preflight, failure_of

TOKENS = torch.tensor([[5, 17, 99, 250, 3, 8]])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("federation")) as world:
        yield world


def run_all(*members: Member) -> list[JobState | None]:
    """Run sites side by side; what one raises is raised here."""
    with ThreadPoolExecutor(len(members)) as pool:
        return [future.result() for future in [pool.submit(member.run) for member in members]]


def test_two_sites_and_two_rounds_end_in_an_adapter_that_computes_what_the_server_holds(world: World) -> None:
    job_id = world.submit()
    members = [world.join(job_id, "a"), world.join(job_id, "bb", rows=20)]
    assert run_all(*members) == [JobState.SUCCEEDED] * 2
    view = world.api("GET", f"/jobs/{job_id}/federation")
    assert (view["rounds_committed"], view["published"]) == (2, "demo/sums@2")
    assert [site["rounds_joined"] for site in view["sites"]] == [2, 2]
    newest = world.api("GET", f"/jobs/{job_id}/rounds")[0]["record"]
    assert sorted(member["examples"] for member in newest["members"]) == [12, 20]
    assert newest["measures"]["aggregation_residual"] > 0
    for member in members:
        receipts = [entry.receipt for entry in member.journal.entries()]
        assert [receipt.receipt.round for receipt in receipts if receipt] == [1, 2]
        assert {receipt.receipt.update for receipt in receipts[1:] if receipt} <= {one["update"] for one in newest["members"]}
    with Client(world.url, world.token) as client:
        client.download("demo/sums", world.folder / "adapter")
    check_logits(world, newest["result"])


def check_logits(world: World, digest: str) -> None:
    """The downloaded adapter in PEFT and the server's state, dense and in float64, give the same logits."""
    state = read_state(b"".join(world.server.store.get(digest)))
    dense = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float64)
    with torch.no_grad():
        base = dense(TOKENS).logits.numpy()
        for name, module in dense.named_modules():
            group = name.rpartition(".")[2]
            if group in state.edits:
                edit = state.edits[group]
                matrix = sum(part.scale * part.phi @ part.psi for part in (edit.trained, edit.residual))
                module.weight += module.weight @ torch.tensor(matrix)
        expected = dense(TOKENS).logits.numpy()
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float64), world.folder / "adapter")
        found = model(input_ids=TOKENS).logits.numpy()
    assert np.abs(expected - base).max() > 0.05, "training changed nothing, so this test shows nothing"
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_what_int8_cuts_off_waits_in_the_journal_for_the_next_process(world: World) -> None:
    job_id = world.submit(wire="int8", max_update_norm=5.0)
    members = [world.join(job_id, name, options={"is_once": True}) for name in ("i8", "int8")]
    run_all(*members)
    first = members[0].journal.entries()[0]
    kept = read_tensors(first.carried_file.read_bytes())
    assert set(kept) == set(first.offer.tensors)
    assert 0 < max(float(np.abs(array).max()) for array in kept.values()) < 0.01
    first.carried_file.write_bytes(write_tensors({name: np.ones_like(array) for name, array in kept.items()}))
    for member in members:
        member.options = {}
    assert run_all(*members) == [JobState.SUCCEEDED] * 2
    assert ["was shortened" in member.texts for member in members] == [True, False], "what was kept is not in the second update"
    numbers = sum(math.prod(form.shape) for form in first.offer.tensors.values())
    assert first.update is not None
    assert numbers < first.update.size < 2 * numbers


class Killed(BaseException):
    """Ends a run as SIGKILL would: nothing of ours runs after it."""


class DyingClient(SiteClient):
    """The real client, in a process that dies before or after one of its calls."""

    dies_at = ""

    def fetch_blob(self, digest: str, path: Path) -> None:
        self._call("fetch", lambda: super(DyingClient, self).fetch_blob(digest, path))

    def store_blob(self, content: bytes) -> None:
        self._call("store", lambda: super(DyingClient, self).store_blob(content))

    def submit(self, update: Any) -> Any:
        return self._call("submit", lambda: super(DyingClient, self).submit(update))

    def _call(self, name: str, call: Callable[[], Any]) -> Any:
        if self.dies_at == f"before {name}":
            raise Killed
        result = call()
        if self.dies_at == f"after {name}":
            raise Killed
        return result


def die_while_running(member: Member, moment: str) -> None:
    """Run a site whose process dies at ``moment``."""

    def tell(event: WorkerEvent) -> None:
        member.events.append(event)
        if moment == "step 3" and isinstance(event, Progress) and event.step == 3:
            raise Killed

    options = SiteOptions(data=[DatasetSpec(path=str(member.data))])
    with member.home.locked(), DyingClient(member.home.read_record().server, member.home.credentials(), member.around.clock) as client:
        client.dies_at = moment
        runner = SiteRunner(member.home, client, options, replace(member.around, tell=tell))
        with pytest.raises(Killed):
            runner.run()


@pytest.mark.parametrize(
    ("moment", "steps_made"),
    [
        ("after fetch", 4),
        ("step 3", 5),  # the third is made again, from the checkpoint of the second
        ("before store", 4),
        ("after store", 4),
        ("before submit", 4),
        ("after submit", 4),
    ],
)
def test_killed_site_goes_on_where_it_was(world: World, moment: str, steps_made: int) -> None:
    job_id = world.submit(rounds=1, min_sites=1, spec={"max_steps": 4, "save_steps": 2})
    member = world.join(job_id, "a")
    die_while_running(member, moment)
    assert member.run() is JobState.SUCCEEDED
    steps = [event.step for event in member.events if isinstance(event, Progress)]
    assert len(steps) == steps_made
    (entry,) = member.journal.entries()
    record = world.api("GET", f"/jobs/{job_id}/rounds/1")["record"]
    receipt, update = entry.receipt, entry.update
    assert receipt is not None
    assert update is not None
    assert [one["update"] for one in record["members"]] == [update.digest] == [receipt.receipt.update]
    assert record["left_out"] == []


def test_policy_is_the_sites_own_word(world: World) -> None:
    job_id = world.submit(rounds=1, min_sites=1)
    with world.at_rest():
        willing, unwilling = (world.join(job_id, name) for name in "ab")
    unwilling.home.policy_file.write_text("max_steps: 1\nallowed_rules: [freeze_phi]\n")
    # The unwilling one first, so that its answer is there before the round closes.
    unwilling.options = {"is_once": True}
    assert unwilling.run() is None
    assert willing.run() is JobState.SUCCEEDED
    record = world.api("GET", f"/jobs/{job_id}/rounds/1")["record"]
    (excluded,) = record["left_out"]
    assert excluded["reason"] == "declined"
    assert not [event for event in unwilling.events if isinstance(event, Progress)]
    (entry,) = unwilling.journal.entries()
    assert entry.ended is not None
    assert (entry.ended.ending, {problem.path for problem in entry.ended.problems}) == (Ending.DECLINED, {"max_steps", "rule"})


def test_site_sends_no_longer_update_than_its_policy_lets_it(world: World) -> None:
    job_id = world.submit(rounds=1, min_sites=1)
    member = world.join(job_id, "a")
    member.home.policy_file.write_text("max_update_norm: 0.001\n")
    assert member.run() is JobState.SUCCEEDED
    assert "was shortened to 0.001" in member.texts
    measures = world.api("GET", f"/jobs/{job_id}/rounds/1")["record"]["measures"]
    assert 0.0009 < measures["update_norm"] <= 0.001


def test_refused_update_is_told_and_not_sent_again(world: World) -> None:
    job_id = world.submit(rounds=1, min_sites=1)
    member = world.join(job_id, "a", rows=101, options={"is_once": True})
    record = member.home.read_record()
    lying = record.enrolment.site.model_copy(update={"max_examples": 1000})
    member.home.keep_record(record.model_copy(update={"enrolment": record.enrolment.model_copy(update={"site": lying})}))
    assert member.run() is None
    (entry,) = member.journal.entries()
    assert entry.ended is not None
    assert (entry.ended.ending, [problem.path for problem in entry.ended.problems]) == (Ending.REFUSED, ["examples"])
    world.api("POST", f"/jobs/{job_id}/cancel")


def test_rows_are_never_quoted_to_the_server(world: World) -> None:
    job_id = world.submit(rounds=1, min_sites=1, spec={"sequence_len": 8, "excess_length_strategy": "error"})
    member = world.join(job_id, "a", options={"is_once": True})
    assert member.run() is None
    assert "row 1" in member.texts
    (entry,) = member.journal.entries()
    assert entry.ended is not None
    assert [(problem.path, problem.value) for problem in entry.ended.problems] == [("invalid_data", None)]
    world.api("POST", f"/jobs/{job_id}/cancel")


def test_pending_site_waits_and_a_revoked_one_ends(world: World) -> None:
    job_id = world.submit(rounds=1, min_sites=1)
    member = world.join(job_id, "a", approve=False)
    running = threading.Thread(target=member.run)
    running.start()
    wait_until(lambda: "waiting to be approved" in member.texts)
    world.api("POST", f"/jobs/{job_id}/sites/a/approve")
    running.join(30)
    assert [entry.receipt is not None for entry in member.journal.entries()] == [True]
    other = world.submit(rounds=1, min_sites=1)
    revoked = world.join(other, "a", approve=False)
    world.api("POST", f"/jobs/{other}/sites/a/revoke")
    with pytest.raises(Forbidden, match="revoked"):
        revoked.run()
    world.api("POST", f"/jobs/{other}/cancel")


def test_site_learns_in_the_middle_of_its_work_that_the_federation_is_over(world: World) -> None:
    job_id = world.submit(rounds=3, min_sites=1)
    member = world.join(job_id, "a")

    def cancel(event: WorkerEvent) -> None:
        if isinstance(event, Progress) and event.step == 2:
            world.api("POST", f"/jobs/{job_id}/cancel")
            wait_until(lambda: world.api("GET", f"/jobs/{job_id}")["state"] == "cancelled")

    member.on_event = cancel
    assert member.run() is JobState.CANCELLED
    assert member.run() is JobState.CANCELLED


def test_server_that_is_another_one_than_at_enrolment_is_not_trusted(world: World) -> None:
    member = world.join(world.submit(min_sites=1), "a")
    record = member.home.read_record()
    other = record.enrolment.model_copy(update={"server_key": "ed25519:" + "ab" * 32})
    member.home.keep_record(record.model_copy(update={"enrolment": other}))
    with pytest.raises(UnexpectedAnswer, match="server's key"):
        member.run()


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_late_site_is_told_and_joins_the_next_round(world: World) -> None:
    job_id = world.submit(rounds=2, min_sites=1, grace="1s")
    with world.at_rest():
        quick, slow = (world.join(job_id, name) for name in "ab")
    first_round_is_over = threading.Event()

    def wait_for_the_others(event: WorkerEvent) -> None:
        if isinstance(event, Progress) and not first_round_is_over.is_set():
            wait_until(lambda: world.api("GET", f"/jobs/{job_id}/federation")["rounds_committed"] >= 1)
            first_round_is_over.set()

    slow.on_event = wait_for_the_others
    quick_run = threading.Thread(target=lambda: (wait_until(lambda: bool(slow.journal.entries())), quick.run()))
    quick_run.start()
    assert slow.run() is JobState.SUCCEEDED
    quick_run.join(30)
    first, second = slow.journal.entries()
    assert first.ended is not None
    assert first.ended.ending is Ending.LATE
    assert second.receipt is not None
    rounds = world.api("GET", f"/jobs/{job_id}/rounds")
    assert [(one["reason"]) for one in rounds[1]["record"]["left_out"]] in (["late"], ["no_answer"])


def test_foreign_key_is_refused_at_once(world: World) -> None:
    member = world.join(world.submit(min_sites=1), "a")
    member.home.key_file.write_text("ab" * 32)
    with pytest.raises(Unauthenticated, match="signature"):
        member.run()


def test_more_rows_than_declared_are_refused_before_anything_is_sent(world: World) -> None:
    member = world.join(world.submit(min_sites=1), "a", rows=101)
    with pytest.raises(InvalidData, match="--max-examples 101"):
        member.run()


def check_site(member: Member) -> dict[str, tuple[bool, str]]:
    options = SiteOptions(data=[DatasetSpec(path=str(member.data))])
    with member.client() as client:
        checks = list(Preflight(member.home, client, options, member.around).run())
    failure = failure_of(checks)
    assert (failure is None) == all(check.is_ok for check in checks)
    return {check.name: (check.is_ok, f"{check.found}; {check.hint}") for check in checks}


def test_preflight_of_a_right_site(world: World) -> None:
    found = check_site(world.join(world.submit(min_sites=1), "a"))
    assert list(found) == ["policy", "server", "clock", "enrolment", "disk", "data", "base model", "one step", "memory"]
    assert all(is_ok for is_ok, _ in found.values()), found


def test_preflight_tells_all_that_is_wrong_at_once(world: World) -> None:
    member = world.join(world.submit(min_sites=1), "a", lead=timedelta(minutes=9))
    member.home.policy_file.write_text("max_steps: 0\n")
    member.data.write_text('{"question": 1}\n')
    found = check_site(member)
    assert {name for name, (is_ok, _) in found.items() if not is_ok} == {"policy", "clock", "enrolment", "data", "one step"}
    assert "set the clock" in found["clock"][1]
    assert "max_steps" in found["policy"][1]
