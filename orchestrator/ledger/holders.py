"""The names under which a job holds bytes; see :mod:`hub.catalog.holds`."""

from __future__ import annotations


def data_holder_of(job_id: str) -> str:
    """Return the holder that stands for a job's data sets."""
    return f"job:{job_id}"


def checkpoint_of(job_id: str) -> str:
    """Return the holder that stands for the checkpoint that a job goes on from."""
    return f"checkpoint:{job_id}"


def delivery_of(job_id: str) -> str:
    """Return the holder that stands for what a job's attempts have sent."""
    return f"delivery:{job_id}"


def rounds_of(job_id: str) -> str:
    """Return the holder that stands for what the rounds of a federated job are made of."""
    return f"rounds:{job_id}"


def holders_of(job_id: str) -> tuple[str, ...]:
    """Return every name under which a job holds bytes."""
    return data_holder_of(job_id), checkpoint_of(job_id), delivery_of(job_id), rounds_of(job_id)
