"""What a served process keeps out of its collector's way."""

import subprocess
import sys

SERVED = """
import gc, os, signal
from cli.listening import listening, run_http
from infra.http import create_app

def end():
    print(gc.get_freeze_count())
    os.kill(os.getpid(), signal.SIGTERM)

with listening("127.0.0.1", 0) as listener:
    run_http(create_app([], title="t", version="1"), listener, end, 0)
"""


def test_no_request_waits_for_the_collector_to_look_at_all_that_was_there_before_it() -> None:
    done = subprocess.run([sys.executable, "-c", SERVED], capture_output=True, text=True, check=False, timeout=120)
    assert int(done.stdout.split()[0]) > 50_000, done.stderr
