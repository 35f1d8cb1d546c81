"""What the same rows give without a federation: each site alone, and all rows in one place."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from orchestrator.aggregate import FederationState
from orchestrator.aggregate.state import Edit, Tensors, start_at, trained_by
from orchestrator.federation_files import write_start
from orchestrator.federation_round import Federation, closing_of, make_offers
from orchestrator.rounds import Round
from simulation.preparation import Simulation
from simulation.reports import Bound
from simulation.server import BEGINNING
from wegeft.algebra import empty
from wegeft.contracts.errors import InvalidSetting, TrainingCrashed
from wegeft.contracts.federation import RoundState, Site, SiteState
from wegeft.contracts.federation_rules import Core, GeneratorExact
from wegeft.contracts.wire import read_update
from workers.crew import Crew, Done, ignore
from workers.simulated_site import EVERYBODY, AnyOrder, AnyResult, Failed, Measured, MeasureOrder, TrainOrder
from workers.site_training import Trained

_KEY = "ed25519:" + "0" * 64
_JOB = "simulation"


def find_bounds(simulation: Simulation, crew: Crew[AnyOrder, AnyResult], done: Done = ignore) -> tuple[Bound, ...]:
    """Return how each site alone, and all rows in one place, would do on the held-out rows, with both factors trained in float32.

    A site alone makes the steps of all rounds in one go. All rows together make as many as all sites of the federation, where the job says
    how many steps a round has; where it counts epochs, as many epochs. Raises :class:`InvalidSetting` where no rows are held out, and
    :class:`TrainingCrashed` where a training failed.
    """
    if not simulation.workplace.held_out:
        raise InvalidSetting("bounds are measured on held-out rows", path="--bounds", hint="give --test-data")
    state = simulation.start.state
    orders = _orders(simulation)
    trained = crew.do(orders, done)
    starts = [_after(state, order, result) for order, result in zip(orders, trained, strict=True)]
    measured = [one for one in crew.do([MeasureOrder(start=start) for start in starts]) if isinstance(one, Measured)]
    return _mean("local_only", measured[:-1]), _mean("centralised", measured[-1:])


def _orders(simulation: Simulation) -> list[TrainOrder]:
    names = (*simulation.examples, EVERYBODY)
    rule = Core() if simulation.section.rule.name == "core" else GeneratorExact()
    change: dict[str, object] = {"rule": rule, "wire": "fp32", "site_ranks": {}, "max_update_norm": 1e12}
    section = simulation.section.model_copy(update=change)
    federation = Federation(job_id=_JOB, base_model=_JOB, spec=section, seed=simulation.scenario.seed, max_steps=simulation.spec.max_steps)
    round_ = Round(number=1, state=RoundState.COLLECTING, closing=closing_of(section), since=BEGINNING, asked=frozenset(names))
    sites = [_stand_in(name) for name in names]
    offers, starts = make_offers(federation, simulation.start.state, round_, sites)
    together = simulation.rounds * (_answering(simulation) if simulation.spec.max_steps else 1)
    return [
        TrainOrder(
            site=name, offer=offers[name], start=starts[offers[name].start], times=together if name == EVERYBODY else simulation.rounds
        )
        for name in names
    ]


def _stand_in(name: str) -> Site:
    return Site(name=name, pseudonym=name, public_key=_KEY, state=SiteState.APPROVED, max_examples=1, enrolled_at=BEGINNING)


def _answering(simulation: Simulation) -> int:
    """Return how many sites answer a round, about."""
    section, sites = simulation.section, len(simulation.examples)
    share = section.sampling.fraction if section.sampling.name == "fraction" else section.sampling.rate
    drawn = min(max(section.min_sites, math.ceil(share * sites)), section.target_sites or sites)
    return max(1, round(drawn * (1 - simulation.scenario.drop)))


def _after(state: FederationState, order: TrainOrder, result: AnyResult) -> bytes:
    """Return the generators that one training came to, as a site would get them."""
    if isinstance(result, Failed):
        raise TrainingCrashed(f"training {order.site} alone failed", problems=result.problems)
    assert isinstance(result, Trained)  # noqa: S101 - a training order gives nothing else
    moved = read_update(result.tensors, "fp32")
    return write_start(FederationState(edits={group: _moved(edit, group, moved) for group, edit in state.edits.items()}), None)


def _moved(edit: Edit, group: str, moved: Tensors) -> Edit:
    start, _ = start_at(edit, None)
    pair = trained_by(edit, group, moved, start)
    return Edit(pair=pair, residual=edit.residual, carried=empty(pair))


def _mean(name: Literal["local_only", "centralised"], measured: Sequence[Measured]) -> Bound:
    names = sorted(set.intersection(*(set(one.metrics) for one in measured)))
    return Bound(
        name=name,
        sites=len(measured),
        loss=statistics.fmean(one.loss for one in measured),
        metrics={metric: statistics.fmean(one.metrics[metric] for one in measured) for metric in names},
    )
