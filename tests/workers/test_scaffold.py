"""SCAFFOLD: a site's and the server's parts together are the paper's algorithm in float64, and take away the drift that FedAvg has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.aggregate import FederationState, Outcome, new_edit
from orchestrator.federation_files import read_state, write_state
from orchestrator.federation_round import Federation, Sent, combine_round, make_offers, recompute, record_commit
from orchestrator.rounds import Aggregate, Closing, Round
from tests.orchestrator.test_federation_round import START, closing_of, sites_of
from wegeft.algebra import from_rows
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.control_variates import control_of, trained_names
from wegeft.contracts.federation import Offer, RoundState, Update
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.tensors import read_tensors
from wegeft.contracts.wire import write_update
from workers.scaffold import Correction, advance_control, change_of_control, fit_change, shift_of

RATE, STEPS, SITES, WIDTH, RANK = 0.1, 8, 4, 5, 2
SHAPE = (WIDTH, RANK)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Quadratic:
    """A site's loss, ½·Σ hᵢⱼ(φᵢⱼ − aᵢⱼ)²; its weights ``h`` and its minimum ``a`` are its own."""

    weights: Array
    minimum: Array

    def gradient(self, phi: Array) -> Array:
        return self.weights * (phi - self.minimum)


def quadratics(seed: int = 3) -> list[Quadratic]:
    random = np.random.default_rng(seed)
    return [Quadratic(random.choice([0.4, 3.0], SHAPE), random.normal(size=SHAPE)) for _ in range(SITES)]


def optimum(losses: list[Quadratic]) -> Array:
    return np.asarray(sum(one.weights * one.minimum for one in losses) / sum(one.weights for one in losses))


def reference(losses: list[Quadratic], x: Array, members: list[list[int]]) -> tuple[Array, Array]:
    """Algorithm 1 of the paper with option II, written from its lines; all that it shares with the code under test is the problem."""
    c, own = np.zeros_like(x), [np.zeros_like(x) for _ in losses]
    for chosen in members:
        moves, changes = [], []
        for i in chosen:
            y = x.copy()
            for _ in range(STEPS):
                y = y - RATE * (losses[i].gradient(y) - own[i] + c)
            after = own[i] - c + (x - y) / (STEPS * RATE)
            moves.append(y - x)
            changes.append(after - own[i])
            own[i] = after
        x = x + sum(moves) / len(chosen)
        c = c + len(chosen) / len(losses) * (sum(changes) / len(chosen))
    return x, c


@dataclass
class Sites:
    """Sites that train φ on quadratics with the code of real ones, and a server that puts them together with its own."""

    losses: list[Quadratic]
    wire: str = "fp32"
    site_optimizer: str = "scaffold"
    has_memory: bool = True
    own: dict[str, dict[str, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = FederationSpec.model_validate(
            {"rule": "freeze_psi", "site_optimizer": self.site_optimizer, "wire": self.wire, "min_sites": 1, "max_update_norm": 1e6}
        )
        self.federation = Federation(job_id="j", base_model="m", spec=spec, seed=1, approved=SITES, max_grad_norm=1e3)
        random = np.random.default_rng(0)
        pair = from_rows(p=np.zeros((RANK, WIDTH)), q=random.normal(size=(RANK, WIDTH)))
        self.state = FederationState(edits={"all": new_edit(pair)})
        self.blobs: dict[str, bytes] = {}
        self.number = 0

    @property
    def phi(self) -> Array:
        return np.asarray(self.state.edits["all"].pair.p.T)

    def run_round(self, chosen: list[int]) -> tuple[Outcome, list[Sent], dict[str, Offer]]:
        self.number += 1
        everyone = list(sites_of(SITES).values())
        asked = [everyone[index] for index in chosen]
        round_ = Round(number=self.number, state=RoundState.COLLECTING, closing=closing_of(self.federation.spec), since=START)
        offers, starts = make_offers(self.federation, self.state, round_, asked)
        sent = [self._train(offers[site.pseudonym], starts, self.losses[index]) for index, site in zip(chosen, asked, strict=True)]
        outcome = combine_round(self.federation, self.state, self.number, 1, sent, self.blobs.__getitem__)
        assert isinstance(outcome, Outcome)
        return outcome, sent, offers

    def play(self, members: list[list[int]]) -> None:
        for chosen in members:
            self.state = read_state(write_state(self.run_round(chosen)[0].state))

    def _train(self, offer: Offer, starts: Mapping[str, bytes], loss: Quadratic) -> Sent:
        start = read_tensors(starts[offer.start])
        x = start["all.phi"].astype(np.float64)
        parameter = torch.nn.Parameter(torch.tensor(x))
        server = {"all.phi": start[control_of("all.phi")].astype(np.float64)} if offer.control else {}
        own = self.own.get(offer.site, {})
        correction = Correction({"all.phi": parameter}, shift_of(server, own)) if offer.control else None
        optimizer = torch.optim.SGD([parameter], lr=RATE)
        for _ in range(STEPS):
            parameter.grad = torch.tensor(loss.gradient(parameter.detach().numpy()))
            if correction is not None:
                correction.apply()
            optimizer.step()
        moved = {"all.phi": parameter.detach().numpy() - x}
        sent = dict(moved)
        if offer.control is not None:
            change = fit_change(change_of_control(moved, server, RATE * STEPS), offer.control.max_norm, offer.wire)
            sent[control_of("all.phi")] = change["all.phi"]
            if self.has_memory:
                self.own[offer.site] = advance_control(own, change, offer.wire)
        return self._send(offer, sent)

    def _send(self, offer: Offer, tensors: Mapping[str, Array]) -> Sent:
        content = write_update(tensors, offer.wire)
        self.blobs[digest_of(content)] = content
        update = Update(
            version=offer.version, job_id="j", round=offer.round, site=offer.site, offer=offer.digest, base_model="m", start=offer.start,
            tensors=digest_of(content), size=len(content), examples=7, steps=STEPS,
        )  # fmt: skip
        return Sent(update=update, rank=None, control_sites=offer.control.sites if offer.control else None)


ALL = list(range(SITES))
PARTIAL = [[0, 1, 2], [1, 3], [0, 2], [2, 3], [0, 1, 3], [1, 2]]


@pytest.mark.parametrize("members", [[ALL] * 10, PARTIAL * 2])
def test_site_and_server_are_the_papers_algorithm(members: list[list[int]]) -> None:
    sites = Sites(quadratics())
    sites.play(members)
    x, c = reference(quadratics(), np.zeros(SHAPE), members)
    assert np.abs(sites.phi - x).max() < 1e-6
    assert np.abs(sites.state.controls["all.phi"] / SITES - c).max() < 1e-6
    assert np.abs(sites.state.controls["all.phi"] - sum(own["all.phi"] for own in sites.own.values())).max() < 1e-12


@pytest.mark.parametrize(("wire", "nearest"), [("fp32", 1e-5), ("bf16", 1e-2), ("int8", 1e-2)])
def test_scaffold_ends_at_the_optimum_from_which_fedavg_drifts(wire: str, nearest: float) -> None:
    losses = quadratics()
    corrected, plain = Sites(losses, wire=wire), Sites(losses, wire=wire, site_optimizer="adamw")
    for sites in (corrected, plain):
        sites.play([ALL] * 40)
    assert np.abs(plain.phi - optimum(losses)).max() > 0.1
    assert np.abs(corrected.phi - optimum(losses)).max() < nearest


def test_lost_control_variates_begin_at_zero_and_do_no_better_than_none() -> None:
    """What makes the difference is what sites remember: without it every change is sent as if it were the first."""
    losses = quadratics()
    forgetful = Sites(losses, has_memory=False)
    forgetful.play([ALL] * 20)
    assert np.abs(forgetful.phi - optimum(losses)).max() > 0.05


def test_record_names_the_sites_and_gives_the_same_state_again() -> None:
    sites = Sites(quadratics())
    sites.play([ALL])
    before = sites.state
    sites.blobs[digest_of(write_state(before))] = write_state(before)
    outcome, sent, offers = sites.run_round([1, 3])
    round_ = Round(
        number=2, state=RoundState.COLLECTING, closing=Closing(min_sites=1, grace=START - START, deadline=START - START), since=START
    )
    closed = Aggregate(members=(), left_out=(), closed_at=START)
    record = record_commit(sites.federation, round_, 1, closed, (before, outcome), sent)
    assert record.control_sites == SITES
    assert [member.weight for member in record.members] == [0.5, 0.5]
    assert recompute(sites.federation, record, list(reversed(sent)), sites.blobs.__getitem__) == record.result
    assert outcome.state.counted == {**before.counted, **{one.update.site: one.update.tensors for one in sent}}
    assert {name: offer.control.counted for name, offer in offers.items() if offer.control} == {
        name: before.counted[name] for name in ("s-01", "s-03")
    }
    assert all(offer.version == 2 for offer in offers.values())
    assert trained_names(offers["s-01"].tensors) == ("all.phi",)


def test_state_without_control_variates_is_written_as_ever() -> None:
    state = Sites(quadratics()).state
    assert b"counted" not in write_state(state)
    assert write_state(replace(state, controls={}, counted={})) == write_state(state)


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
def test_change_fits_the_bound_as_the_server_reads_it(wire: Any) -> None:
    random = np.random.default_rng(1)
    change = {"all.phi": random.normal(size=SHAPE), "all.psi": random.normal(size=SHAPE[::-1])}
    fitted = fit_change(change, 0.25, wire)
    zero: dict[str, Array] = {}
    received = advance_control(zero, fitted, wire)
    assert 0.2 < math.hypot(*(float(np.linalg.norm(array)) for array in received.values())) <= 0.25
    assert fit_change(change, 1e3, wire)["all.phi"].tolist() == change["all.phi"].tolist()


def test_training_of_no_step_changes_no_control_variate() -> None:
    c = {"all.phi": np.ones(SHAPE)}
    assert not change_of_control({"all.phi": np.zeros(SHAPE)}, c, 0.0)["all.phi"].any()


def test_tensor_of_another_shape_begins_at_zero() -> None:
    server, own = {"all.phi": np.ones((3, 2))}, {"all.phi": np.full((2, 2), 5.0), "all.psi": np.full((2, 3), 4.0)}
    assert shift_of(server, own)["all.phi"].tolist() == np.ones((3, 2)).tolist()
    after = advance_control(own, {"all.phi": np.full((3, 2), 0.5)}, "fp32")
    assert (after["all.phi"].tolist(), after["all.psi"].tolist()) == (np.full((3, 2), 0.5).tolist(), np.full((2, 3), 4.0).tolist())
