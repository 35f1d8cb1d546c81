"""The orchestrator's truth, in SQL: jobs, their attempts, leases and blobs, their logs and their metrics.

Every function works inside the caller's transaction and takes the time as an argument. Every write for an attempt is fenced by
its lease token, which only grows: a stale worker changes nothing.
"""

from orchestrator.ledger.access import check_path
from orchestrator.ledger.attempts import (
    Claimed,
    Lease,
    authenticate,
    claim,
    contact,
    end_attempt,
    find_lease,
    find_live,
    give_back,
    hold,
    list_live,
    record_events,
    record_failure,
    renew,
    save_checkpoint,
    succeed,
    was_published,
)
from orchestrator.ledger.blobs import (
    data_of,
    delivery_of,
    find_delivered,
    hold_data,
    keep_for_rounds,
    let_go_of_ended,
    note_blob,
    renew_delivered,
)
from orchestrator.ledger.jobs import JobFilter, NewJob, add, cancel, count_by_state, count_live, find, find_same, list_jobs
from orchestrator.ledger.log import read_events, read_metric, read_tail

__all__ = [
    "Claimed",
    "JobFilter",
    "Lease",
    "NewJob",
    "add",
    "authenticate",
    "cancel",
    "check_path",
    "claim",
    "contact",
    "count_by_state",
    "count_live",
    "data_of",
    "delivery_of",
    "end_attempt",
    "find",
    "find_delivered",
    "find_lease",
    "find_live",
    "find_same",
    "give_back",
    "hold",
    "hold_data",
    "keep_for_rounds",
    "let_go_of_ended",
    "list_jobs",
    "list_live",
    "note_blob",
    "read_events",
    "read_metric",
    "read_tail",
    "record_events",
    "record_failure",
    "renew",
    "renew_delivered",
    "save_checkpoint",
    "succeed",
    "was_published",
]
