"""What NVFlare's own interpreter runs for ``bench.federation_rounds``.

``python bench/_nvflare_job.py CELL.json`` is the job; ``python … --site MARKS WORK``, from a copy of this file, is a site's script.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def run_job(path: Path) -> None:
    """Run FedAvg in the simulator, as the file says."""
    import numpy as np
    from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
    from nvflare.recipe.sim_env import SimEnv

    said = json.loads(path.read_text())
    script = path.with_name("noop_site.py")
    script.write_text(Path(__file__).read_text())
    recipe = NumpyFedAvgRecipe(
        name="noop",
        model=np.zeros(round(said["megabytes"] * 1e6 / 4), dtype=np.float32),
        min_clients=said["sites"],
        num_rounds=said["rounds"],
        train_script=str(script),
        train_args=f"--site {path.with_name('marks')} {said['work']}",
    )
    recipe.execute(SimEnv(num_clients=said["sites"], workspace_root=str(path.with_name("workspace"))))


def take_part(marks: str, work_seconds: float) -> None:
    """Be a site: add noise to what comes, and send it back."""
    import numpy as np
    import nvflare.client as flare

    flare.init()
    random = np.random.default_rng()
    while flare.is_running():
        model = flare.receive()
        line = json.dumps({"what": "begun", "round": model.current_round + 1, "at": time.time()}) + "\n"
        descriptor = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        arrays = {name: array + random.standard_normal(array.shape, dtype=np.float32) for name, array in model.params.items()}
        time.sleep(work_seconds)
        flare.send(flare.FLModel(params=arrays, metrics={"accuracy": 0.0}))


if __name__ == "__main__":
    if sys.argv[1] == "--site":
        take_part(sys.argv[2], float(sys.argv[3]))
    else:
        run_job(Path(sys.argv[1]))
