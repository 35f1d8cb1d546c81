"""A whole simulation: rounds until all are committed, each kept and told when it is done, and measured on held-out rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from threadpoolctl import threadpool_limits

from orchestrator.aggregate import FederationState
from orchestrator.federation_files import write_adapter, write_start, write_state
from orchestrator.federation_round import Federation
from orchestrator.rounds import may_try_again
from simulation.bounds import find_bounds
from simulation.journal import Journal
from simulation.preparation import Simulation
from simulation.reports import Bound, Figures, RoundReport, SimulationReport
from simulation.server import Server, Standing
from simulation.site_answers import Answers
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, digest_of
from wegeft.contracts.base_model_name import pinned_name
from wegeft.contracts.errors import RoundsFailed
from wegeft.contracts.federation import RoundState
from workers.crew import Crew, Done, ignore
from workers.simulated_site import AnyOrder, AnyResult, Measured, MeasureOrder

Tell = Callable[[RoundReport], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Around:
    """What a simulation runs with; none of it changes what it comes to."""

    crew: Crew[AnyOrder, AnyResult]
    journal: Journal | None = None
    tell: Tell = lambda _report: None
    """Takes each try at a round that is played now; those that the journal knows are not told again."""
    done: Done = ignore
    """Takes how many sites of the round have trained."""
    threads: int = 1
    """That put a round together, when nobody trains."""


def simulate(simulation: Simulation, around: Around, *, has_bounds: bool = False) -> SimulationReport:
    """Return what the simulation comes to, going on from its journal where it has one.

    Raises :class:`RoundsFailed` where a round fails more often in a row than the job lets it; what is done is kept. Meanwhile each
    operation of numpy has one thread in this process: rounds multiply small matrices, and threads that wait for more would take the cores
    from those who train.
    """
    with threadpool_limits(1, user_api="blas"):
        run = _Run(simulation, around)
        standing = run.begin()
        while standing.committed < simulation.rounds:
            standing = run.step(standing)
        bounds = find_bounds(simulation, around.crew, around.done) if has_bounds else ()
        return run.finish(standing, bounds)


class _Run:
    def __init__(self, simulation: Simulation, around: Around) -> None:
        self._simulation, self._around = simulation, around
        federation = replace(federation_of(simulation), threads=around.threads)
        answers = Answers(scenario=simulation.scenario, place=simulation.workplace, crew=around.crew, done=around.done)
        self._server = Server(simulation.scenario, federation, simulation.examples, answers)
        self._reports: list[RoundReport] = []
        self._first: Figures | None = None
        self._latest: Figures | None = None

    def begin(self) -> Standing:
        first = Standing(state=self._simulation.start.state)
        journal = self._around.journal
        if journal is not None:
            journal.begin(self._simulation.describe())
            self._reports = journal.reports()
            first = journal.standing(first)
        if self._reports:
            self._first, self._latest = self._reports[0].before, self._reports[-1].after
            self._refuse_more(self._reports[-1])
        else:
            self._first = self._latest = self._measure(first.state)
        return first

    def step(self, standing: Standing) -> Standing:
        played = self._server.play(standing)
        before = self._latest
        if played.report.record.state is RoundState.COMMITTED:
            self._latest = self._measure(played.standing.state)
        report = played.report.model_copy(update={"before": before, "after": self._latest})
        self._reports.append(report)
        if self._around.journal is not None:
            self._around.journal.keep(replace(played, report=report))
        self._around.tell(report)
        self._refuse_more(report)
        return played.standing

    def _refuse_more(self, report: RoundReport) -> None:
        record = report.record
        if record.state is RoundState.FAILED and not may_try_again(record.attempt, self._simulation.section.max_failed_rounds):
            message = f"round {record.round} failed {record.attempt} times, the last time for {record.failure}"
            raise RoundsFailed(message, path=f"round {record.round}", hint="a lower --drop, or a lower min_sites, lets rounds close")

    def _measure(self, state: FederationState) -> Figures | None:
        if not self._simulation.workplace.held_out:
            return None
        return figures_of(self._around.crew.do([MeasureOrder(start=write_start(state, None))])[0])

    def finish(self, standing: Standing, bounds: Sequence[Bound]) -> SimulationReport:
        report = SimulationReport(
            scenario=self._simulation.scenario,
            hostile=self._server.hostile,
            rounds=standing.committed,
            tries=len(self._reports),
            result=digest_of(write_state(standing.state)),
            before=self._first,
            after=self._latest,
            bounds=tuple(bounds),
            sent_bytes=sum(one.sent_bytes for one in self._reports),
            received_bytes=sum(one.received_bytes for one in self._reports),
            kinds=self._simulation.kinds,
        )
        if self._around.journal is not None:
            self._around.journal.finish(report, adapter_files(self._simulation, standing.state))
        return report


def federation_of(simulation: Simulation) -> Federation:
    """Return what stays the same from round to round; sites' names are their pseudonyms."""
    spec = simulation.spec
    return Federation(
        job_id="simulation",
        base_model=pinned_name(spec.base_model, spec.base_model_revision),
        spec=simulation.section,
        seed=simulation.scenario.seed,
        pseudonyms={name: name for name in simulation.examples},
        max_steps=spec.max_steps,
    )


def figures_of(result: AnyResult) -> Figures:
    """Return a measurement as it is told."""
    assert isinstance(result, Measured)  # noqa: S101 - a measuring order gives nothing else
    return Figures(loss=result.loss, metrics=dict(result.metrics))


def adapter_files(simulation: Simulation, state: FederationState) -> Mapping[str, bytes]:
    """Return the files of the adapter that the federation has come to, residuals included."""
    published = write_adapter(state, has_one_rank=True)
    rank, scale = max(published.ranks.values()), next(iter(published.scales.values()))
    config = {**simulation.start.config, "r": rank, "wegeft_alpha": scale * rank}
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return {CONFIG_FILE: text.encode(), WEIGHTS_FILE: published.weights}
