"""Why an attempt or a job ended without a result: one branch of the tree that :mod:`wegeft.contracts.errors` draws."""

from __future__ import annotations

from wegeft.contracts.problems import WegeftError


class JobFailure(WegeftError):
    """The attempt ended without a result."""

    code, http_status, exit_status = "job_failure", 409, 1


class LossNotFinite(JobFailure):
    """The loss became NaN or infinite."""

    code = "loss_not_finite"


class OutOfMemory(JobFailure):
    """The worker ran out of memory."""

    code = "out_of_memory"


class BaseModelUnusable(JobFailure):
    """The base model was found but cannot be used."""

    code = "base_model_unusable"


class TrainingCrashed(JobFailure):
    """The training code raised an unexpected error."""

    code, is_retryable = "training_crashed", True


class WorkerLost(JobFailure):
    """The worker process ended without a word."""

    code, is_retryable = "worker_lost", True


class LeaseExpired(JobFailure):
    """The worker was not heard from before its lease ran out."""

    code, is_retryable = "lease_expired", True


class Stalled(JobFailure):
    """The worker lives but made no progress for too long."""

    code, is_retryable = "stalled", True


class NoProgress(JobFailure):
    """Too many attempts in a row were lost without a newer checkpoint."""

    code = "no_progress"


class DurationExceeded(JobFailure):
    """The job ran longer than its max_duration."""

    code = "duration_exceeded"


class NoCapacity(JobFailure):
    """No node can ever satisfy the job's resources."""

    code = "no_capacity"


class RoundsFailed(JobFailure):
    """Too many rounds of the federation failed, one after the other."""

    code = "rounds_failed"


class JobFailed(JobFailure):
    """The job failed."""

    code, exit_status = "job_failed", 1


class JobCancelled(JobFailure):
    """The job was cancelled."""

    code, exit_status = "job_cancelled", 3


class JobPending(JobFailure):
    """The job has not ended in the time given to wait."""

    code, exit_status, is_retryable = "job_pending", 8, True
