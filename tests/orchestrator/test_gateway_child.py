"""The gateway's child by itself: how it serves a pool over two streams, and that it ends with its parent."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from orchestrator.ray_gateway import serve_pool
from tests.orchestrator.gateway_process import WordPool
from tests.orchestrator.test_ray_gateway import ROOT, is_alive, order_of, until, worker_pid


def test_the_child_ends_with_a_killed_parent(tmp_path: Path) -> None:
    """The parent gets SIGKILL and can tell nobody; the end of the input is enough."""
    log = tmp_path / "gateway.log"
    code = f"""
import sys, time
from pathlib import Path
from orchestrator.ray_gateway import GatewayPool
from tests.orchestrator.test_ray_gateway import order_of, start_one
pool = GatewayPool([sys.executable, "-m", "tests.orchestrator.gateway_process"], Path({str(log)!r}))
start_one(pool, "run-a.1")
print("child", pool.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        line = next(line for line in parent.stdout if line.startswith(b"child"))
        child, worker = int(line.split()[1]), worker_pid(log)
    finally:
        parent.kill()
        parent.communicate()
    until(lambda: not is_alive(child) and not is_alive(worker), 10)
    assert "closed" in log.read_text()


def test_serving_over_any_two_streams() -> None:
    """Requests in, answers out, nonsense skipped, the pool closed at the end of the input."""
    reading, writing = os.pipe()
    sink = io.BytesIO()
    pool = WordPool()
    with os.fdopen(reading, "rb") as source:
        server = threading.Thread(target=serve_pool, args=(pool, source, sink))
        server.start()
        with os.fdopen(writing, "wb") as requests:
            for line in ("nonsense", "{}", json.dumps({"id": 1, "order": json.loads(order_of("huge-a.1").model_dump_json())})):
                requests.write(line.encode() + b"\n")
                requests.flush()
            until(lambda: b"no_capacity" in sink.getvalue())
        server.join(10)
    assert not server.is_alive()
    answers = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [answer["error"]["code"] for answer in answers if answer.get("id") == 1] == ["no_capacity"]
