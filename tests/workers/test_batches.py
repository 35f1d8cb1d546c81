"""The plan of steps, and the split of rows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wegeft.contracts.errors import InvalidData
from workers.batches import BatchPlan, batches_within, hold_out

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=60).map(tuple)
sizes = st.integers(1, 7)


@given(lengths=lengths, micro=sizes, accumulation=sizes, seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 3))
def test_each_epoch_visits_each_row_once(lengths: tuple[int, ...], micro: int, accumulation: int, seed: int, epoch: int) -> None:
    plan = BatchPlan(lengths, micro, accumulation, seed)
    steps = [plan.step(epoch * plan.steps_per_epoch + number) for number in range(plan.steps_per_epoch)]
    assert sorted(row for step in steps for batch in step for row in batch) == list(range(len(lengths)))
    assert all(sum(len(batch) for batch in step) == micro * accumulation for step in steps[:-1])
    assert all(len(batch) <= micro for step in steps for batch in step)
    assert all(len(step) <= accumulation for step in steps)


def test_micro_batches_of_a_step_hold_rows_of_similar_length() -> None:
    plan = BatchPlan(tuple(range(100)), 4, 5, 0)
    for step in (plan.step(number) for number in range(plan.steps_per_epoch)):
        flat = [plan.lengths[row] for batch in step for row in batch]
        assert flat == sorted(flat)


def test_steps_are_not_sorted_by_length() -> None:
    plan = BatchPlan(tuple(range(200)), 10, 1, 0)
    spread = [max(batch) - min(batch) for number in range(20) for batch in plan.step(number)]
    assert min(spread) > 50


def test_epochs_and_seeds_differ_and_repeat() -> None:
    plan = BatchPlan((5,) * 40, 4, 1, 1)
    first = [plan.step(number) for number in range(10)]
    assert first == [BatchPlan((5,) * 40, 4, 1, 1).step(number) for number in range(10)]
    assert first != [plan.step(10 + number) for number in range(10)]
    assert first != [BatchPlan((5,) * 40, 4, 1, 2).step(number) for number in range(10)]


def test_a_plan_is_the_same_on_every_machine() -> None:
    assert BatchPlan((3, 1, 4, 1, 5, 9, 2, 6), 2, 2, 42).step(0) == ((1, 6), (4, 7))


def test_a_fingerprint_tells_plans_apart() -> None:
    plans = [
        BatchPlan((1, 2), 1, 1, 0),
        BatchPlan((2, 1), 1, 1, 0),
        BatchPlan((1, 2), 2, 1, 0),
        BatchPlan((1, 2), 1, 2, 0),
        BatchPlan((1, 2), 1, 1, 1),
    ]
    assert len({plan.fingerprint for plan in plans}) == len(plans)


@pytest.mark.parametrize(
    ("rows", "micro", "accumulation", "epochs", "steps"),
    [(600, 16, 1, 1, 38), (600, 16, 1, 2, 76), (600, 8, 2, 0.5, 19), (1, 16, 4, 0.01, 1), (10, 1, 1, 0.3, 3)],
)
def test_epochs_make_steps(rows: int, micro: int, accumulation: int, epochs: float, steps: int) -> None:
    plan = BatchPlan((1,) * rows, micro, accumulation, 0)
    assert plan.total_steps(epochs, None) == steps
    assert plan.total_steps(epochs, 7) == 7


@given(rows=st.integers(2, 200), share=st.floats(0.001, 0.99), seed=st.integers(0, 100))
def test_a_share_is_held_out(rows: int, share: float, seed: int) -> None:
    if max(1, round(rows * share)) >= rows:
        return
    kept, held = hold_out(rows, share, seed)
    assert sorted(kept + held) == list(range(rows))
    assert len(held) == max(1, round(rows * share))


def test_a_number_of_rows_is_held_out() -> None:
    assert len(hold_out(10, 3, 0)[1]) == 3
    assert hold_out(10, 3, 0) == hold_out(10, 3, 0)
    assert hold_out(100, 3, 0) != hold_out(100, 3, 1)


@pytest.mark.parametrize(("rows", "amount"), [(1, 0.1), (3, 3), (3, 10), (2, 0.9)])
def test_rows_to_train_on_must_remain(rows: int, amount: float) -> None:
    with pytest.raises(InvalidData, match="no row is left to train on") as caught:
        hold_out(rows, amount, 0)
    assert caught.value.problems[0].path == "val_set_size"


@given(lengths=lengths, budget=st.integers(1, 100))
def test_a_token_budget_holds_but_for_single_rows(lengths: tuple[int, ...], budget: int) -> None:
    batches = list(batches_within(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget for batch in batches)
    assert math.prod(len(batch) for batch in batches) > 0
