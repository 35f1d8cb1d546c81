"""What happened when, one JSON line each, in a file that several processes append to."""

import json
import os
import time


def mark(path: str, what: str, number: int) -> None:
    """Append that ``what`` happened in a round, now."""
    line = json.dumps({"what": what, "round": number, "at": time.time()}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, line.encode())
    os.close(descriptor)
