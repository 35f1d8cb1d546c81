"""NVFlare's simulator, for ``bench.federation_rounds``: one process for the server and threads for the sites. It is no deployment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from bench._round_timing import Cell, Mark, Timing, end_all, read_marks, timing_of, wait_for, watching


def run_nvflare(cell: Cell, folder: Path, venv: Path) -> Timing:
    """Time rounds of FedAvg; a round is taken to begin when the first site has it in hand."""
    told = {"sites": cell.sites, "megabytes": cell.megabytes, "rounds": cell.rounds + 2, "work": cell.work_seconds}
    (folder / "cell.json").write_text(json.dumps(told))
    command = [str(venv.absolute() / "bin" / "python"), str(Path(__file__).with_name("_nvflare_job.py")), str(folder / "cell.json")]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with (folder / "log").open("wb") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, env={**kept, "OMP_NUM_THREADS": "1"}, cwd=folder)
    try:
        with watching(lambda: [job.pid]) as samples:
            wait_for(lambda: job.poll() is not None, cell.limit_seconds)
        first: dict[int, float] = {}
        for one in sorted(read_marks(folder / "marks"), key=lambda one: one.at):
            first.setdefault(one.round, one.at)
        return timing_of([Mark(what="round", round=number, at=at) for number, at in first.items()], samples)
    finally:
        end_all([job.pid])
