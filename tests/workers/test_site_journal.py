"""The journal of a site's rounds: what is done stays done, whatever ends the process, and no half file is ever read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tests.contracts.test_federation import an_offer, an_update
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.control_variates import ControlTerms
from wegeft.contracts.errors import InvalidSetting, InvalidTensors, Problem, StorageFull
from wegeft.contracts.federation import FeedbackTerms, Receipt, SignedReceipt, Update
from wegeft.contracts.signatures import sign
from workers.site_journal import KEPT_ROUNDS, Ending, Entry, Journal

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


TENSORS = b"tensors"


def a_trained(**changes: object) -> Update:
    """An update of those tensors."""
    return an_update(**{"tensors": digest_of(TENSORS), "size": len(TENSORS), **changes})


def a_receipt() -> SignedReceipt:
    update = an_update()
    receipt = Receipt(job_id="j1", round=3, attempt=1, site="s-1", update=update.digest, tensors=update.tensors, received_at=NOW)
    return SignedReceipt(receipt=receipt, signature=sign(bytes(32), receipt.to_bytes()))


def test_entry_goes_from_offer_to_receipt(journal: Journal) -> None:
    entry = journal.open(an_offer())
    assert (entry.update, entry.receipt, entry.is_stored, entry.is_over) == (None, None, False, False)
    entry.keep_update(a_trained(), TENSORS)
    entry.mark_stored()
    again = journal.open(an_offer())
    assert (again.update, again.read_tensors(), again.is_stored, again.is_over) == (a_trained(), TENSORS, True, False)
    entry.keep_receipt(a_receipt())
    assert journal.entries() == [again]
    assert again.receipt == a_receipt()
    assert again.is_over


def test_round_that_ended_otherwise_says_why(journal: Journal) -> None:
    entry = journal.open(an_offer())
    entry.keep_checkpoint(2, {"a": b"1"})
    entry.end(Ending.REFUSED, (Problem(path="norm", message="too long"),))
    ended = journal.open(an_offer()).ended
    assert ended is not None
    assert (ended.ending, ended.problems[0].path) == (Ending.REFUSED, "norm")
    assert entry.is_over
    assert entry.read_checkpoint() is None


def test_other_offers_have_their_own_entries(journal: Journal) -> None:
    offers = [an_offer(), an_offer(attempt=2), an_offer(round=4), an_offer(seed=9)]
    folders = {journal.open(offer).folder for offer in offers}
    assert len(folders) == 4
    assert [entry.offer.round for entry in journal.entries()] == [3, 3, 3, 4]


def test_last_whole_checkpoint_is_read(journal: Journal) -> None:
    entry = journal.open(an_offer())
    assert entry.read_checkpoint() is None
    for step in (9, 10):
        entry.keep_checkpoint(step, {"state.json": b"%d" % step, "state.safetensors": b"x"})
    assert entry.read_checkpoint() == {"state.json": b"10", "state.safetensors": b"x"}
    half = entry.folder / ".checkpoint-11"
    half.mkdir()
    (half / "state.json").write_bytes(b"11")
    assert entry.read_checkpoint() == {"state.json": b"10", "state.safetensors": b"x"}
    entry.keep_checkpoint(11, {"state.json": b"eleven"})
    assert entry.read_checkpoint() == {"state.json": b"eleven"}
    entry.keep_update(a_trained(), TENSORS)
    assert entry.read_checkpoint() is None


@pytest.mark.parametrize(
    "break_off",
    [
        lambda entry: (entry.folder / ".tensors.safetensors.abc").write_bytes(b"half"),
        lambda entry: entry.control_file.write_bytes(b"whole, but its tensors were not written"),
        lambda entry: (entry.folder / "tensors.safetensors").write_bytes(b"whole, but its update was not written"),
        lambda entry: (entry.folder / ".update.json.abc").write_bytes(b'{"half'),
    ],
)
def test_process_killed_before_its_update_is_whole_trains_again(journal: Journal, break_off: Callable[[Entry], object]) -> None:
    break_off(journal.open(an_offer()))
    assert journal.open(an_offer()).update is None


def test_folder_without_an_offer_is_left_alone(journal: Journal) -> None:
    (journal.folder / "000009-001-abc").mkdir()
    assert journal.entries() == []


def test_spoilt_entry_is_named(journal: Journal) -> None:
    entry = journal.open(an_offer())
    (entry.folder / "update.json").write_text("{}")
    with pytest.raises(InvalidSetting, match=r"update\.json"):
        _ = journal.open(an_offer()).update


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"tenses"), lambda path: path.unlink()])
def test_update_whose_tensors_have_rotted_is_trained_again(journal: Journal, spoil: Callable[[Path], object]) -> None:
    entry = journal.open(an_offer())
    entry.keep_update(a_trained(), TENSORS)
    spoil(entry.folder / "tensors.safetensors")
    assert journal.open(an_offer()).update is None
    entry.keep_update(a_trained(), TENSORS)
    assert journal.open(an_offer()).update == a_trained()


def test_receipts_outlive_tensors(journal: Journal) -> None:
    for number in range(1, KEPT_ROUNDS + 3):
        offer = an_offer(round=number, start="sha256:" + f"{number:x}" * 64)
        entry = journal.open(offer)
        journal.start_file(offer.start).write_bytes(b"start")
        entry.keep_update(a_trained(round=number), TENSORS)
        if number > 1:
            entry.keep_receipt(a_receipt())
    journal.prune()
    entries = journal.entries()
    assert [(entry.folder / "tensors.safetensors").exists() for entry in entries] == [True, False, True, True, True]
    assert all(entry.receipt for entry in entries[1:])
    assert len(list(journal.folder.glob("start-*"))) == KEPT_ROUNDS


def answer(journal: Journal, number: int, counted: Update | None = None) -> Update:
    """A round that is trained, cuts off its number, and begins where ``counted`` is the last that is in."""
    tensors = f"{number}".encode()
    entry = journal.open(an_offer(round=number, wire="int8", feedback=terms(counted)))
    update = a_trained(round=number, tensors=digest_of(tensors), size=len(tensors))
    entry.keep_update(update, tensors, {"x": np.array([float(number)])})
    entry.keep_receipt(a_receipt())
    journal.prune()
    return update


def terms(counted: Update | None) -> FeedbackTerms:
    return FeedbackTerms(counted=counted.tensors if counted else None)


def owed(journal: Journal, counted: Update | None) -> float | None:
    found = Journal(journal.folder).read_carried(an_offer(round=20, wire="int8", feedback=terms(counted)))
    return float(found["x"][0]) if found else None


def test_what_was_cut_off_is_owed_only_for_the_update_that_the_server_counts(journal: Journal) -> None:
    assert owed(journal, None) is None
    first = answer(journal, 1)
    second = answer(journal, 2, first)
    assert (owed(journal, None), owed(journal, first), owed(journal, second)) == (None, 1.0, 2.0)
    assert Journal(journal.folder).read_carried(an_offer(round=3)) == {}, "a wire that cuts nothing off owes nothing"
    assert owed(journal, a_trained(tensors="sha256:" + "9" * 64)) is None


def test_rounds_that_were_undone_leave_nothing_behind(journal: Journal) -> None:
    """Rounds 2 and 3 are undone, and with them what was cut off there; what was owed after round 1 is owed again."""
    first = answer(journal, 1)
    answer(journal, 3, answer(journal, 2, first))
    assert owed(journal, first) == 1.0


def test_what_is_owed_outlives_rounds_that_came_to_nothing_and_no_more(journal: Journal) -> None:
    counted: Update | None = None
    for number in range(1, 6 + KEPT_ROUNDS):
        update = answer(journal, number, counted)
        counted = update if number <= 3 else counted
    assert owed(journal, counted) == 3.0
    assert [entry.offer.round for entry in journal.entries() if entry.carried_file.exists()] == [3, 6, 7, 8]


def test_rotten_rest_is_told(journal: Journal) -> None:
    update = answer(journal, 1)
    journal.entries()[0].carried_file.write_bytes(b"rotten")
    with pytest.raises(InvalidTensors):
        owed(journal, update)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises((InvalidSetting, StorageFull), match="cannot write"):
        Journal(tmp_path / "absent").open(an_offer())


def keep_round(journal: Journal, number: int, counted: str | None) -> Update:
    """Train a round whose control variate is its number; what counted before it is ``counted``."""
    offer = an_offer(round=number, version=2, control=ControlTerms(sites=1, max_norm=1.0, counted=counted))
    tensors = str(number).encode()
    entry, update = journal.open(offer), a_trained(round=number, version=2, tensors=digest_of(tensors), size=len(tensors))
    entry.keep_update(update, tensors, control={"q.phi": np.full((2, 1), 1 / number)})
    entry.keep_receipt(a_receipt())
    return update


def test_control_variate_is_the_one_after_the_update_that_counted(journal: Journal) -> None:
    first = keep_round(journal, 1, None)
    second = keep_round(journal, 2, first.tensors)
    for counted, expected in ((first.tensors, 1.0), (second.tensors, 0.5)):
        offer = an_offer(round=3, version=2, control=ControlTerms(sites=1, max_norm=1.0, counted=counted))
        control = journal.read_control(offer)
        assert control is not None
        assert control["q.phi"].tolist() == [[expected]] * 2
    lost = an_offer(round=3, version=2, control=ControlTerms(sites=1, max_norm=1.0, counted="sha256:" + "9" * 64))
    assert journal.read_control(lost) is None
    assert journal.read_control(an_offer()) is None


def test_control_variates_are_kept_from_the_one_that_counts(journal: Journal) -> None:
    counted: Update | None = None
    for number in range(1, 9):
        update = keep_round(journal, number, counted.tensors if counted else None)
        counted = update if number <= 3 else counted
        journal.prune()
    kept = [entry.offer.round for entry in journal.entries() if entry.control_file.exists()]
    assert kept == [3, 4, 5, 6, 7, 8]
    (journal.entries()[2].control_file).write_bytes(b"rotten")
    with pytest.raises(InvalidTensors):
        journal.read_control(journal.entries()[-1].offer)
