"""Names of jobs: unique, sorted by time, and safe in a URL."""

from __future__ import annotations

import re
from datetime import datetime

from wegeft.contracts.errors import JobNotFound

ENTROPY_BYTES = 10

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no letter that looks like a digit
_JOB_ID = re.compile(r"job-[0-9a-hjkmnp-tv-z]{26}\Z")


def make_job_id(now: datetime, entropy: bytes) -> str:
    """Return ``job-`` and a ULID: 48 bits of milliseconds since 1970, then the 80 bits of ``entropy``."""
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"needs {ENTROPY_BYTES} bytes of entropy, got {len(entropy)}")
    number = (int(now.timestamp() * 1000) << 80) | int.from_bytes(entropy)
    return "job-" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def check_job_id(text: str) -> str:
    """Return ``text`` if it can be a job's id; raise :class:`JobNotFound` otherwise, as there cannot be such a job."""
    if not _JOB_ID.match(text):
        raise JobNotFound(path="job", value=text)
    return text
