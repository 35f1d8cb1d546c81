"""Every row goes to exactly one site, by the seed alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.partition import (
    HASH_KINDS,
    KINDS_LIMIT,
    ByField,
    Dirichlet,
    Iid,
    Partition,
    kinds_of,
    parse_partition,
    share_out,
)
from wegeft.contracts.errors import Problem

KINDS = st.lists(st.sampled_from("abcde"), min_size=12, max_size=80)
PARTITIONS = st.one_of(st.just(Iid()), st.floats(1e-3, 1e3).map(Dirichlet), st.just(ByField("kind")))


@given(KINDS, PARTITIONS, st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_every_row_is_in_exactly_one_site_and_no_site_is_empty(kinds: list[str], partition: Partition, sites: int, seed: int) -> None:
    parts = share_out(kinds, partition, sites, seed)
    assert sorted(row for part in parts for row in part) == list(range(len(kinds)))
    assert all(part == sorted(part) and part for part in parts)
    assert len(parts) == (len(set(kinds)) if isinstance(partition, ByField) else sites)
    assert share_out(kinds, partition, sites, seed) == parts


def test_a_seed_decides() -> None:
    kinds = list("ab" * 50)
    assert share_out(kinds, Dirichlet(0.3), 5, 1) != share_out(kinds, Dirichlet(0.3), 5, 2)
    assert share_out(kinds, Iid(), 5, 1) != share_out(kinds, Iid(), 5, 2)


def test_iid_sites_are_of_one_size_and_a_small_alpha_tells_them_apart() -> None:
    kinds = [str(row % 10) for row in range(1000)]
    assert {len(part) for part in share_out(kinds, Iid(), 20, 3)} == {50}

    def largest_share(alpha: float) -> float:
        parts = share_out(kinds, Dirichlet(alpha), 20, 3)
        return sum(max([kinds[row] for row in part].count(kind) for kind in set(kinds)) / len(part) for part in parts) / len(parts)

    assert largest_share(100.0) < 0.3
    assert largest_share(0.1) > 0.5


def test_by_field_makes_a_site_of_each_value_in_order() -> None:
    assert share_out(list("bab"), ByField("x"), 0, 0) == [[1], [0, 2]]


def test_an_alpha_so_small_that_every_draw_is_zero_still_shares_out() -> None:
    assert sorted(row for part in share_out(["a"] * 9, Dirichlet(1e-300), 3, 0) for row in part) == list(range(9))


def test_few_values_are_kinds_and_many_are_hashed() -> None:
    assert kinds_of(["a", "b", "a"]) == (["a", "b", "a"], "2 values")
    kinds, told = kinds_of([{"number": number} for number in range(KINDS_LIMIT + 1)])
    assert set(kinds) <= {str(kind) for kind in range(HASH_KINDS)}
    assert told == f"{KINDS_LIMIT + 1} values, hashed to {HASH_KINDS} kinds"


@pytest.mark.parametrize(
    "text", ["", "iid:", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:nan", "dirichlet:x", "by:", "by", "other"]
)
def test_what_is_no_partition_is_told(text: str) -> None:
    found = parse_partition(text)
    assert isinstance(found, Problem)
    assert found.path == "--partition"


def test_partitions_are_read() -> None:
    assert [parse_partition(text) for text in ("iid", "dirichlet:0.3", "by:hospital")] == [Iid(), Dirichlet(0.3), ByField("hospital")]
