"""The child of the gateway's tests: a small pool that does what the first word of a job's id says."""

import os
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.ray_gateway import run_gateway
from wegeft.contracts.errors import NoCapacity, OutOfMemory, StartFailed, WorkerLost
from wegeft.contracts.placement import AttemptEnd, AttemptOrder

TROUBLES = {
    "away": StartFailed("the cluster cannot be joined"),
    "bug": RuntimeError("a bug in the pool"),
    "huge": NoCapacity("no such node"),
}


class WordPool:
    """Runs nothing but a sleeping process for an attempt that is to run; a real job meets the trouble that a file names."""

    def __init__(self) -> None:
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.ends: list[AttemptEnd] = []

    def start(self, order: AttemptOrder) -> None:
        match order.job_id.partition("-")[0]:
            case "run":
                process = subprocess.Popen([sys.executable, "-c", "import time; print('noise', flush=True); time.sleep(600)"])
                self.running[order.handle] = process
                print("printed by the pool", flush=True)
                print(f"pid {process.pid}", file=sys.stderr, flush=True)
            case "done":
                self.ends.append(AttemptEnd(handle=order.handle))
            case "oom":
                self.ends.append(AttemptEnd(handle=order.handle, error=OutOfMemory("too little").body()))
            case "job":
                raise TROUBLES[Path(os.environ["TROUBLE_FILE"]).read_text()]
            case "huge" | "bug" | "away" as trouble:
                raise TROUBLES[trouble]
            case "hang":
                time.sleep(600)
            case "die":
                os._exit(3)
            case "noise":
                os.write(1, b"this is not JSON\n\xff\xfe{\n" + b"x" * 100_000 + b"\n")
                self.ends.append(AttemptEnd(handle=order.handle))
            case "foreign":
                self.ends += [AttemptEnd(handle="job-nobody.1"), AttemptEnd(handle=order.handle), AttemptEnd(handle=order.handle)]

    def poll(self) -> tuple[AttemptEnd, ...]:
        for handle, process in list(self.running.items()):
            if process.poll() is not None:
                del self.running[handle]
                self.ends.append(AttemptEnd(handle=handle, error=WorkerLost(f"status {process.returncode}").body()))
        ends, self.ends = tuple(self.ends), []
        return ends

    def stop(self, handle: str) -> None:
        if handle in self.running:
            self.running[handle].kill()

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
        print("closed", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_gateway(WordPool)
