"""A federation of tiny sites, for tests: sums of one digit, a Llama of two layers, three steps a round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simulation.preparation import Given, Simulation, prepare_simulation
from simulation.reports import SimulationReport
from simulation.run import Around, simulate
from simulation.scenario import Options
from tests.tiny_models import make_model_folder, write_sums
from wegeft.contracts.job import DatasetSpec, JobSpec
from workers.crew import InlineCrew
from workers.data import read_rows

COLUMN = "kind"


def write_model(folder: Path) -> Path:
    """Write the base model."""
    return make_model_folder(folder, width=16, layers=1)


def job_of(model: Path, *, steps: int = 2, **federation: Any) -> JobSpec:
    """A federated job over the model."""
    fields = {
        "name": "tiny", "base_model": str(model), "rank": 4, "target_modules": ["q_proj", "down_proj"], "max_steps": steps,
        "micro_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler": "constant", "warmup_ratio": 0.0, "sequence_len": 64,
        "federation": {"rounds": 2, "min_sites": 2, **federation},
    }  # fmt: skip
    return JobSpec.model_validate_json(json.dumps(fields))


def rows_of(folder: Path, count: int = 40) -> Given:
    """Sums, of which each has one of four kinds."""
    path = write_sums(folder / f"rows-{count}.jsonl", count)
    rows = read_rows(path, DatasetSpec(path=str(path)))
    return Given(rows=rows, values=[number % 4 for number in range(count)], held_out=rows[:6])


def options_of(**changes: Any) -> Options:
    return Options(**{"sites": 4, "partition": "dirichlet:0.5", "partition_by": COLUMN, "seed": 7, **changes})


def make_simulation(model: Path, given: Given, *, federation: dict[str, Any] | None = None, **changes: Any) -> Simulation:
    """A simulation of the tiny job."""
    return prepare_simulation(job_of(model, **(federation or {})), options_of(**changes), given)


def run(simulation: Simulation, **around: Any) -> SimulationReport:
    """Run it in this process."""
    crew = InlineCrew(simulation.workplace.prepare)
    return simulate(simulation, Around(crew=crew, **around))
