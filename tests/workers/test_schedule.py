"""The learning rate of each step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wegeft.contracts.job import load_spec
from workers.schedule import Schedule, schedule_of

BASE = "name: x\nbase_model: m\ndatasets: [{path: a.jsonl}]\nlearning_rate: 0.5\n"


def test_linear_by_hand() -> None:
    schedule = Schedule(1.0, 6, 2, "linear")
    assert [schedule.rate(step) for step in range(6)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_cosine_by_hand() -> None:
    schedule = Schedule(2.0, 4, 0, "cosine")
    assert [schedule.rate(step) for step in range(4)] == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])


def test_constant_by_hand() -> None:
    schedule = Schedule(2.0, 5, 2, "constant")
    assert [schedule.rate(step) for step in range(5)] == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0])


@given(
    total=st.integers(1, 300), warmup=st.integers(0, 300), shape=st.sampled_from(["linear", "cosine", "constant"]), peak=st.floats(1e-9, 10)
)
def test_every_step_learns_and_none_above_the_peak(total: int, warmup: int, shape: str, peak: float) -> None:
    schedule = Schedule(peak, total, min(warmup, total), shape)  # type: ignore[arg-type]
    rates = [schedule.rate(step) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    assert max(rates) == pytest.approx(peak)
    after = rates[max(0, schedule.warmup_steps - 1) :]
    assert after == pytest.approx(sorted(after, reverse=True), rel=1e-12)


@pytest.mark.parametrize(
    ("fields", "total", "warmup"),
    [("", 50, 5), ("", 3, 1), ("warmup_ratio: 0\n", 50, 0), ("warmup_ratio: 0.25\n", 50, 13), ("warmup_steps: 80\n", 50, 50)],
)
def test_a_job_says_how_long_it_warms_up(fields: str, total: int, warmup: int) -> None:
    schedule = schedule_of(load_spec(BASE + fields), total)
    assert (schedule.warmup_steps, schedule.peak, schedule.shape) == (warmup, 0.5, "linear")
