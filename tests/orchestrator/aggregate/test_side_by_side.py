"""Threads change nothing but the time: order, bits, errors and numpy's error state are those of one thread."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from time import sleep

import numpy as np
import pytest

from orchestrator.aggregate import Plan
from orchestrator.aggregate.side_by_side import in_order
from orchestrator.aggregate.state import FederationState
from tests.orchestrator.aggregate.federations import a_state, bits_of, members_of, put_together
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
