"""Our simulation, for ``bench.federation_simulation``: ``python -m bench._our_simulation RUN.json`` plays one whose sites train nothing.

It is what ``wgctl federation simulate`` runs without ``--output``, with as many actors on Ray, but a hand has noise in place of training.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench._round_timing import GROUPS, RANK, SHORT_SECONDS, Cell, Timing, end_all, mark, read_marks, timing_of, watching
from orchestrator.aggregate import FederationState, new_edit
from orchestrator.federation_start import Start
from simulation.preparation import Simulation
from simulation.reports import RoundReport
from simulation.run import Around, simulate
from simulation.scenario import Options, make_scenario, site_names
from wegeft.algebra import from_rows
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.job import JobSpec, parse_spec
from wegeft.contracts.wire import write_update
from workers.crew import RayCrew
from workers.generator_start import read_start
from workers.processor import usable_cores
from workers.simulated_site import AnyOrder, AnyResult, TrainOrder, Workplace
from workers.site_training import Trained

_ROWS = 10
"""Of each site."""


def simulate_ours(cell: Cell, folder: Path, rule: str = "factor_mean") -> Timing:
    """Time rounds of a simulation under ``rule``, in a process of its own."""
    path, log = folder / "run.json", folder / "run.log"
    path.write_text(json.dumps({"cell": asdict(cell), "rule": rule}))
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "bench._our_simulation", str(path)], stdout=file, stderr=file)
    try:
        with watching(lambda: [process.pid], SHORT_SECONDS) as samples:
            status = process.wait(timeout=cell.limit_seconds)
        if status:
            raise RuntimeError(f"the simulation has failed: {log.read_text()[-2000:]}")
        return timing_of(read_marks(folder / "marks"), samples)
    finally:
        end_all([process.pid])


@dataclass(frozen=True)
class Noise:
    """A hand that reads what it starts from and answers with noise, new each time."""

    marks: Path
    work_seconds: float

    def prepare(self) -> Noise:
        """Load nothing."""
        return self

    def __call__(self, order: AnyOrder) -> AnyResult:
        """Answer a round; nothing is measured where there are no held-out rows."""
        assert isinstance(order, TrainOrder)
        offer, random = order.offer, np.random.default_rng()
        mark(self.marks, "begun", offer.round)
        read_start(order.start, offer.tensors)
        time.sleep(self.work_seconds)
        moved = {name: np.float32(0.01) * random.standard_normal(form.shape, dtype=np.float32) for name, form in offer.tensors.items()}
        return Trained(
            tensors=write_update(moved, offer.wire),
            examples=_ROWS,
            steps=1,
            norm=0.0,
            is_shortened=False,
            carried={},
            control={},
            metrics={},
        )


def simulation_of(cell: Cell, rule: str) -> Simulation:
    """Return the simulation of a cell, one round longer: the first is not timed."""
    random = np.random.default_rng(0)
    pairs = {
        f"group{index}": from_rows(
            p=random.uniform(-1, 1, (RANK, cell.width)), q=random.uniform(-1, 1, (RANK, cell.width)) / cell.width**0.5, scale=2.0
        )
        for index in range(GROUPS)
    }
    section: dict[str, Any] = {"rounds": cell.rounds + 1, "min_sites": cell.sites, "max_update_norm": 1e9, "rule": rule}
    spec: JobSpec = parse_spec({"name": "rounds", "base_model": "org/model", "rank": RANK, "alpha": 2 * RANK, "federation": section})
    federation = spec.federation
    assert isinstance(federation, FederationSpec)
    parts = {name: range(_ROWS * index, _ROWS * (index + 1)) for index, name in enumerate(site_names(cell.sites))}
    return Simulation(
        scenario=make_scenario(Options(sites=cell.sites, partition="iid"), spec, cell.sites),
        rounds=federation.rounds,
        workplace=Workplace(spec=spec, rows=(), parts=parts),
        start=Start(config={}, state=FederationState(edits={group: new_edit(pair) for group, pair in pairs.items()})),
        section=federation,
        kinds="one kind",
    )


def main(path: Path) -> None:
    """Play the simulation that the file tells of, and mark where each round begins."""
    said, marks = json.loads(path.read_text()), path.with_name("marks")
    cell = Cell(**said["cell"])
    hands = min(usable_cores(), cell.sites)
    crew: RayCrew[AnyOrder, AnyResult] = RayCrew(Noise(marks, cell.work_seconds).prepare, hands, path.with_name("ray"), common="start")

    def tell(report: RoundReport) -> None:
        mark(marks, "round", report.record.round + 1)

    try:
        mark(marks, "round", 1)
        simulate(simulation_of(cell, said["rule"]), Around(crew=crew, tell=tell, threads=usable_cores()))
    finally:
        crew.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
