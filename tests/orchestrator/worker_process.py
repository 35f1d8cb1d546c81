"""A gateway's child whose attempts speak to the orchestrator as real workers do, without training anything."""

from __future__ import annotations

import threading
import time

from orchestrator.ray_gateway import run_gateway
from tests.orchestrator.samples import progress
from tests.orchestrator.serving import adapter_files, result_of
from wegeft.client import AttemptClient
from wegeft.contracts.adapter import FileEntry
from wegeft.contracts.errors import JobCancelled, WegeftError
from wegeft.contracts.placement import AttemptEnd, AttemptOrder
from wegeft.contracts.training import Checkpoint, EventBatch

STEPS = 8


class ThreadPool:
    """One thread for an attempt."""

    def __init__(self) -> None:
        self.ends: list[AttemptEnd] = []
        self.stops: dict[str, threading.Event] = {}

    def start(self, order: AttemptOrder) -> None:
        self.stops[order.handle] = threading.Event()
        threading.Thread(target=self.run, args=(order,), daemon=True).start()

    def run(self, order: AttemptOrder) -> None:
        try:
            with AttemptClient(order) as client:
                work(client, self.stops[order.handle])
        except WegeftError as error:
            print(f"{order.handle}: {error.code}", flush=True)
        self.ends.append(AttemptEnd(handle=order.handle))

    def poll(self) -> tuple[AttemptEnd, ...]:
        ends, self.ends = tuple(self.ends), []
        return ends

    def stop(self, handle: str) -> None:
        if handle in self.stops:
            self.stops[handle].set()

    def close(self) -> None:
        for stop in self.stops.values():
            stop.set()


def work(client: AttemptClient, stop: threading.Event) -> None:
    """Go on from the last checkpoint, step by step, and deliver an adapter whose bytes depend on the job's seed alone."""
    task = client.task()
    done = task.resume_from.step if task.resume_from else 0
    for number, step in enumerate(range(done + 1, STEPS + 1)):
        time.sleep(0.05)
        if client.heartbeat(step).should_stop or stop.is_set():
            client.fail(JobCancelled().body())
            return
        client.report(EventBatch(first_number=number, events=(progress(step),)))
        blob = client.put_blob(f"state of {task.job_id} at {step}".encode())
        client.checkpoint(Checkpoint(step=step, files=(FileEntry(path="state", digest=blob.digest, size=blob.size),)))
    files = adapter_files(seed=task.spec.seed)
    for content in files.values():
        client.put_blob(content)
    client.finish(result_of(files, steps=float(STEPS)))


if __name__ == "__main__":
    run_gateway(ThreadPool)
