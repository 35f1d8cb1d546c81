"""Threads change nothing but the time: order, bits, errors and numpy's error state are those of one thread."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import numpy as np
import pytest

from orchestrator.aggregate import Plan
from orchestrator.aggregate.gramian import gram_of_updates, update_of
from orchestrator.aggregate.side_by_side import in_order
from orchestrator.aggregate.state import FederationState
from orchestrator.aggregate.workspace import Workspace
from tests.orchestrator.aggregate.federations import a_member, a_state, bits_of, flat, in_gauge, members_of, put_together
from wegeft.contracts.federation_rules import Defence, FactorMean, GeneratorExact, GeometricMedian, MultiKrum, NoDefence, Rule

THREADS = [1, 2, 5]


@pytest.mark.parametrize("threads", THREADS)
def test_results_come_in_the_order_of_the_items_whichever_is_done_first(threads: int) -> None:
    def work(item: int) -> int:
        sleep(0.002 * (7 - item))
        return item * item

    assert list(in_order(work, range(7), threads)) == [item * item for item in range(7)]
    assert list(in_order(work, [], threads)) == []


@pytest.mark.parametrize("threads", THREADS)
def test_no_more_is_begun_than_memory_was_promised_for(threads: int) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            begun.append(item)
            yield item

    for taken, _ in enumerate(in_order(lambda item: item, items(), threads), start=1):
        assert len(begun) <= taken + threads


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_reaches_the_caller(threads: int) -> None:
    def work(item: int) -> int:
        if item == 3:
            raise np.linalg.LinAlgError("no end")
        return item

    with pytest.raises(np.linalg.LinAlgError):
        list(in_order(work, range(9), threads))
    assert threading.active_count() < 50


@pytest.mark.parametrize("threads", THREADS)
def test_what_numpy_is_told_to_ignore_is_ignored_in_every_thread(threads: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with np.errstate(all="ignore"):
            found = list(in_order(lambda item: float(np.float64(1e308) * item), [1, 10, 100], threads))
    assert found == [1e308, np.inf, np.inf]


def several(state: FederationState, rule: Rule, defence: Defence, threads: int) -> tuple[bytes, object]:
    found = put_together(Plan(rule=rule, defence=defence, threads=threads), state, members_of(state, 9))
    return bits_of(found.state), (found.weights, found.scores, found.measures)


@pytest.mark.parametrize("defence", [NoDefence(), MultiKrum(malicious=2), GeometricMedian()])
@pytest.mark.parametrize("rule", [GeneratorExact(), FactorMean(), FactorMean(align=False)])
def test_any_number_of_threads_gives_the_same_bits(rule: Rule, defence: Defence) -> None:
    state = a_state(3)
    assert several(state, rule, defence, 1) == several(state, rule, defence, 2) == several(state, rule, defence, 5)


@pytest.mark.parametrize("threads", THREADS)
def test_inner_products_of_many_unlike_members_are_those_of_dense_updates(threads: int) -> None:
    """More than one block of them, of several ranks and in a hostile gauge, over generators of two widths: no array's numbers stay."""
    state = a_state(3)
    members = [a_member(state, f"s-{index:02}", index, rank=(None, 2, 1)[index % 3]) for index in range(35)]
    members[3] = in_gauge(state, members[3], np.diag([100.0, 0.05, 1.0]))
    found = gram_of_updates(state, members, threads)
    updates = np.stack([flat(update_of(state, member)) for member in members])
    np.testing.assert_allclose(found, updates @ updates.T, rtol=1e-7, atol=1e-8)
    assert found.tobytes() == gram_of_updates(state, members).tobytes()


def test_a_workspace_gives_each_name_and_each_thread_memory_of_its_own() -> None:
    space = Workspace()
    first, other = space.take("first", 2, 3), space.take("other", 6)
    first[:], other[:] = 1.0, 2.0
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: space.take("first", 2, 3).fill(3.0)).result()
    assert (first.min(), first.max(), other.min(), other.max()) == (1.0, 1.0, 2.0, 2.0)
    again = space.take("first", 3, 1)
    again[:] = 4.0
    assert np.shares_memory(first, again)
    assert space.take("first", 5, 5).shape == (5, 5)
