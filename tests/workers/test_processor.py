"""Cores that may be used, in and out of containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.processor import usable_cores


@pytest.mark.parametrize(("content", "most"), [("max 100000", 10**6), ("150000 100000", 1), ("50000 100000", 1), ("broken", 10**6)])
def test_a_cgroup_limits_the_cores(tmp_path: Path, content: str, most: int) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text(content)
    assert usable_cores(limit) == min(most, len(os.sched_getaffinity(0)))


def test_without_a_cgroup_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "absent") == len(os.sched_getaffinity(0))
