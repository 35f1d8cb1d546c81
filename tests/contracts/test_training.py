"""What workers report: long texts are cut, long batches and numbers that no database keeps are refused."""

import pytest
from pydantic import ValidationError

from wegeft.contracts.training import MAX_BATCH, MAX_TEXT, EventBatch, Message, Sample

LONG = "ä" * (MAX_TEXT + 1)


def test_a_text_of_the_greatest_length_is_kept() -> None:
    """Whole."""
    assert Message(text=LONG[:-1]).text == LONG[:-1]


def test_a_longer_text_is_cut_and_says_so() -> None:
    """Wherever it is read, as the job must not end because its model babbles."""
    cut = LONG[: MAX_TEXT - 1] + "…"
    assert Message(text=LONG).text == cut
    assert Message.model_validate_json(f'{{"text": "{LONG}"}}').text == cut
    sample = Sample(prompt=LONG, expected=LONG * 9, answer=LONG * 99)
    assert (sample.prompt, sample.expected, sample.answer) == (cut, cut, cut)


def test_what_is_no_text_is_still_refused() -> None:
    """A cut is for texts."""
    with pytest.raises(ValidationError, match="valid string"):
        Message.model_validate({"text": list(LONG)})


def test_a_batch_has_an_end() -> None:
    """At a thousand events."""
    events = (Message(text="a"),) * MAX_BATCH
    assert len(EventBatch(first_number=0, events=events).events) == MAX_BATCH
    with pytest.raises(ValidationError, match="at most 1000 items"):
        EventBatch(first_number=0, events=(*events, Message(text="b")))


@pytest.mark.parametrize(("first", "count"), [(2**31 - 1, 1), (2**31 - 2, 2), (2**31 - 1000, 1000), (2**31, 0)])
def test_numbers_that_no_database_keeps(first: int, count: int) -> None:
    """Are refused by the contract; those just below pass."""
    events = (Message(text="a"),) * count
    with pytest.raises(ValidationError):
        EventBatch(first_number=first, events=events)
    assert EventBatch(first_number=first - 1, events=events).first_number == first - 1
