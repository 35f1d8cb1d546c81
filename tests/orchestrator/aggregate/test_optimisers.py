"""Server optimizers against their published formulas, written out once more in the plainest way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.aggregate import Plan
from orchestrator.aggregate.optimisers import take_step
from tests.orchestrator.aggregate.federations import a_state, members_of, put_together
from wegeft.contracts.federation_rules import (
    Alternate,
    FactorMean,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    GeneratorExact,
    ServerOptimiser,
)


class Published:
    """The update rules of Hsu et al. (2019) and Reddi et al. (2021), algorithm 2, number by number, with Flower's bias correction."""

    def __init__(self, optimiser: ServerOptimiser) -> None:
        self.optimiser, self.m, self.v, self.round = optimiser, 0.0, 0.0, 0

    def step(self, x: float, mean: float) -> float:
        self.round += 1
        o, delta = self.optimiser, mean - x
        match o:
            case FedAvg():
                return mean
            case FedAvgM():
                gradient = x - mean
                self.m = o.server_momentum * self.m + gradient
                return x - o.server_learning_rate * self.m
            case FedAdam():
                self.m = o.beta_1 * self.m + (1 - o.beta_1) * delta
                self.v = o.beta_2 * self.v + (1 - o.beta_2) * delta**2
                eta = o.eta * (1 - o.beta_2 ** (self.round + 1.0)) ** 0.5 / (1 - o.beta_1 ** (self.round + 1.0))
                return x + eta * self.m / (self.v**0.5 + o.tau)
            case FedYogi():
                self.m = o.beta_1 * self.m + (1 - o.beta_1) * delta
                sign = (self.v > delta**2) - (self.v < delta**2)
                self.v = self.v - (1 - o.beta_2) * delta**2 * sign
                return x + o.eta * self.m / (self.v**0.5 + o.tau)
            case FedAdagrad():
                self.v += delta**2
                return x + o.eta * delta / (self.v**0.5 + o.tau)


OPTIMISERS = [
    FedAvg(), FedAvgM(), FedAvgM(server_learning_rate=0.5, server_momentum=0.9), FedAdam(),
    FedAdam(eta=0.02, beta_1=0.5, beta_2=0.9, tau=1e-2), FedYogi(), FedYogi(eta=0.3, beta_1=0.0),
    FedAdagrad(), FedAdagrad(eta=1.0, tau=1e-6),
]  # fmt: skip


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda o: o.name)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.floats(-3, 3))
def test_steps_are_those_of_the_papers(optimiser: ServerOptimiser, means: list[float], start: float) -> None:
    published, moments, x, expected = Published(optimiser), {}, np.array([start]), start
    for number, mean in enumerate(means, start=1):
        expected = published.step(expected, mean)
        step, moments = take_step(optimiser, np.array([mean]) - x, moments, number)
        x = x + step
        assert x[0] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("rule", [FactorMean(align=False), GeneratorExact()], ids=lambda rule: rule.name)
@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda o: o.name)
def test_rounds_step_on_every_number_of_the_mean_pair(optimiser: ServerOptimiser, rule: FactorMean | GeneratorExact) -> None:
    state = a_state(1)
    shape = state.edits["q_proj"].pair.p.shape
    published = [Published(optimiser) for _ in range(shape[0] * shape[1])]
    for number in range(1, 4):
        members = members_of(state, 3, number)
        mean = put_together(Plan(rule=rule, round=number), state, members).state.edits["q_proj"].pair.p
        old = state.edits["q_proj"].pair.p
        expected = [one.step(float(x), float(y)) for one, x, y in zip(published, old.ravel(), mean.ravel(), strict=True)]
        state = put_together(Plan(rule=rule, server_optimizer=optimiser, round=number), state, members).state
        np.testing.assert_allclose(state.edits["q_proj"].pair.p.ravel(), expected, rtol=1e-9, atol=1e-10)


def test_a_factor_that_was_not_sent_does_not_drift_on_old_moments() -> None:
    state = a_state(1)
    for number in (1, 2, 3):
        parts = ("phi",) if number % 2 else ("psi",)
        new = put_together(
            Plan(rule=Alternate(), server_optimizer=FedAdam(), round=number), state, members_of(state, 2, number, parts)
        ).state
        frozen = ("q", "p")[number % 2 == 0]
        np.testing.assert_array_equal(getattr(new.edits["q_proj"].pair, frozen), getattr(state.edits["q_proj"].pair, frozen))
        state = new
    assert set(state.moments) == {f"{group}.{part}.{kind}" for group in state.edits for part in ("phi", "psi") for kind in "mv"}
