"""How many members are read at once: memory is bounded by the longest of them."""

from __future__ import annotations

import numpy as np

from orchestrator.aggregate.gramian import read_once
from orchestrator.aggregate.state import Contribution

_MEBIBYTE = np.zeros(1 << 18, dtype=np.float32)


def sending(site: str, mebibytes: int, rank: int | None) -> Contribution:
    """A member whose tensors take no memory, and say that they do."""
    tensors = {"all.phi": np.broadcast_to(_MEBIBYTE, (mebibytes, 1 << 18))}
    return Contribution(site=site, examples=1, load=lambda: tensors, rank=rank)


def test_members_are_kept_where_all_of_them_are_no_more_than_a_block() -> None:
    members = [sending("a", 1, 1), sending("b", 8, None)]
    assert read_once(members) is not members


def test_one_short_member_before_long_ones_does_not_let_all_of_them_into_memory() -> None:
    members = [sending("a", 1, 1), *(sending(f"b{number}", 64, None) for number in range(3))]
    assert read_once(members) is members
