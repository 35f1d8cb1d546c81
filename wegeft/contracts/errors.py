"""Every error that a user can meet, drawn as one tree.

    WegeftError
    ├── InvalidInput            what was sent is wrong; nothing was changed
    │   ├── InvalidJob          job.yaml: syntax, fields, types, combinations
    │   ├── InvalidData         rows of a data set
    │   ├── InvalidTensors      a safetensors file: header, dtype, shape, NaN
    │   ├── InvalidReference    ns/name@selector, digests, identifiers
    │   ├── InvalidSetting      a WEGEFT_… variable or option of a command
    │   ├── InvalidRequest      any other HTTP request body, query or path
    │   ├── ResultMismatch      a worker's result against its job
    │   └── InvalidAdapterConfig  adapter configuration against the model
    │       └── TargetsNotFound   target modules match no layer of the base model
    ├── NotFound
    │   ├── JobNotFound · AdapterNotFound · VersionNotFound · AliasNotFound
    │   ├── BlobNotFound · FileNotFoundInVersion
    │   └── BaseModelNotFound
    ├── Conflict                the state moved on; read it again
    │   ├── StaleLease          another attempt holds the job
    │   ├── IllegalTransition   the job's state does not allow this
    │   ├── AliasMoved          compare-and-set lost
    │   ├── StaleParent         a commit's parent is not the newest version
    │   ├── IdempotencyConflict one key, two different requests
    │   ├── StaleRound · TooStale · FederationOver   a site answers or asks when a round or its job is over
    │   └── AlreadyRunning      an embedded service holds this home folder
    ├── Refused
    │   ├── Unauthenticated     no token, or a wrong, expired or revoked one
    │   ├── Forbidden           the token's role does not allow this
    │   ├── PolicyRefused       the server's policy does not allow this
    │   └── TooLarge            over a limit of the server
    │       └── QuotaExceeded   the namespace has no room left
    ├── Broken
    │   ├── DigestMismatch      bytes are not what their name says
    │   ├── SignatureInvalid · UntrustedKey   a version's signature does not hold, or is by a key that is not trusted
    │   ├── StorageFull · StorageUnavailable · DatabaseUnavailable
    │   ├── ServiceUnreachable · ServiceTimeout · PortTaken · StartFailed
    │   └── UnexpectedAnswer    a peer spoke another protocol
    └── JobFailure              why an attempt ended without a result
        ├── LossNotFinite · OutOfMemory · BaseModelUnusable · TrainingCrashed
        ├── WorkerLost · LeaseExpired · Stalled · NoProgress · DurationExceeded · NoCapacity · RoundsFailed
        └── JobFailed · JobCancelled · JobPending   how ``wait`` ended for a script

A class's docstring is its default message; ``code`` is its name on the wire. ``ERROR_KINDS`` maps each code to one HTTP status
and one exit status, and says whether trying again may help.
"""

from __future__ import annotations

from wegeft.contracts.faults import (
    Broken,
    DatabaseUnavailable,
    DigestMismatch,
    PortTaken,
    ServiceTimeout,
    ServiceUnreachable,
    SignatureInvalid,
    StartFailed,
    StorageFull,
    StorageUnavailable,
    UnexpectedAnswer,
    UntrustedKey,
)
from wegeft.contracts.job_failures import (
    BaseModelUnusable,
    DurationExceeded,
    JobCancelled,
    JobFailed,
    JobFailure,
    JobPending,
    LeaseExpired,
    LossNotFinite,
    NoCapacity,
    NoProgress,
    OutOfMemory,
    RoundsFailed,
    Stalled,
    TrainingCrashed,
    WorkerLost,
)
from wegeft.contracts.problems import ErrorBody, Problem, WegeftError, shorten, title_of

__all__ = [  # and every class below
    "ERROR_KINDS",
    "BaseModelUnusable",
    "Broken",
    "DatabaseUnavailable",
    "DigestMismatch",
    "DurationExceeded",
    "ErrorBody",
    "JobCancelled",
    "JobFailed",
    "JobFailure",
    "JobPending",
    "LeaseExpired",
    "LossNotFinite",
    "NoCapacity",
    "NoProgress",
    "OutOfMemory",
    "PortTaken",
    "Problem",
    "RoundsFailed",
    "ServiceTimeout",
    "ServiceUnreachable",
    "SignatureInvalid",
    "Stalled",
    "StartFailed",
    "StorageFull",
    "StorageUnavailable",
    "TrainingCrashed",
    "UnexpectedAnswer",
    "UntrustedKey",
    "WegeftError",
    "WorkerLost",
    "error_from_body",
    "shorten",
    "title_of",
]


class InvalidInput(WegeftError):
    """What was sent is not valid."""

    code, http_status, exit_status = "invalid_input", 422, 2


class InvalidJob(InvalidInput):
    """The job file is not valid."""

    code = "invalid_job"


class InvalidData(InvalidInput):
    """The data set cannot be trained on as it is."""

    code = "invalid_data"


class InvalidTensors(InvalidInput):
    """The tensor file is not acceptable."""

    code = "invalid_tensors"


class InvalidReference(InvalidInput):
    """The name, reference or digest is malformed."""

    code = "invalid_reference"


class InvalidSetting(InvalidInput):
    """A setting or option has an unusable value."""

    code = "invalid_setting"


class InvalidRequest(InvalidInput):
    """The request is malformed."""

    code = "invalid_request"


class ResultMismatch(InvalidInput):
    """The result is not what the job asked for."""

    code = "result_mismatch"


class InvalidAdapterConfig(InvalidInput):
    """The adapter's configuration does not fit the base model."""

    code = "invalid_adapter_config"


class TargetsNotFound(InvalidAdapterConfig):
    """The target modules match no layer of the base model."""

    code = "targets_not_found"


class NotFound(WegeftError):
    """There is no such thing, or this token may not see it."""

    code, http_status, exit_status = "not_found", 404, 4


class JobNotFound(NotFound):
    """There is no such job."""

    code = "job_not_found"


class AdapterNotFound(NotFound):
    """There is no such adapter."""

    code = "adapter_not_found"


class VersionNotFound(NotFound):
    """The adapter has no such version."""

    code = "version_not_found"


class AliasNotFound(NotFound):
    """The adapter has no such alias."""

    code = "alias_not_found"


class BlobNotFound(NotFound):
    """No bytes are stored under this digest."""

    code = "blob_not_found"


class FileNotFoundInVersion(NotFound):
    """The version has no such file."""

    code = "file_not_found"


class BaseModelNotFound(NotFound):
    """The base model cannot be found."""

    code = "base_model_not_found"


class Conflict(WegeftError):
    """The state has moved on."""

    code, http_status, exit_status = "conflict", 409, 5


class StaleLease(Conflict):
    """Another attempt holds this job; stop."""

    code = "stale_lease"


class IllegalTransition(Conflict):
    """The job's state does not allow this."""

    code = "illegal_transition"


class AliasMoved(Conflict):
    """The alias no longer points where you thought."""

    code = "alias_moved"


class StaleParent(Conflict):
    """The parent of the commit is not the newest version any more."""

    code, http_status = "stale_parent", 412


class IdempotencyConflict(Conflict):
    """The idempotency key was used for a different request."""

    code = "idempotency_conflict"


class StaleRound(Conflict):
    """The round is over; ask for the next one."""

    code = "stale_round"


class TooStale(Conflict):
    """The update started from a version too long ago; ask for the newest one."""

    code = "too_stale"


class FederationOver(Conflict):
    """The federated job has ended; there will be no more rounds."""

    code, http_status = "federation_over", 410


class AlreadyRunning(Conflict):
    """A service is already running on this home folder."""

    code = "already_running"


class Refused(WegeftError):
    """The request was understood and refused."""

    code, http_status, exit_status = "refused", 403, 6


class Unauthenticated(Refused):
    """The token is missing, wrong, expired or revoked."""

    code, http_status = "unauthenticated", 401


class Forbidden(Refused):
    """The token's role does not allow this."""

    code = "forbidden"


class PolicyRefused(Refused):
    """The server's policy does not allow this."""

    code = "policy_refused"


class TooLarge(Refused):
    """The request is over a limit of the server."""

    code, http_status = "too_large", 413


class QuotaExceeded(TooLarge):
    """The namespace has no room left."""

    code = "quota_exceeded"


def _tree(kind: type[WegeftError]) -> list[type[WegeftError]]:
    return [kind, *(c for sub in kind.__subclasses__() for c in _tree(sub))]


_BRANCHES: tuple[type[WegeftError], ...] = (InvalidInput, NotFound, Conflict, Refused, Broken, JobFailure)
"""As they are drawn; of two with one HTTP status the first is the nearest to an unknown code."""
ERROR_KINDS: dict[str, type[WegeftError]] = {WegeftError.code: WegeftError} | {
    kind.code: kind for branch in _BRANCHES for kind in _tree(branch)
}
"""Every code and its class, in the order of the drawing; the one mapping to HTTP and exit statuses."""


def error_from_body(body: ErrorBody) -> WegeftError:
    """Return the error that a body describes; an unknown code becomes the nearest kind by HTTP status."""
    kind = ERROR_KINDS.get(body.code)
    if kind is None:
        kind = next((k for k in ERROR_KINDS.values() if k.http_status == body.status), UnexpectedAnswer)
    return kind(body.detail, problems=body.problems)
