"""What does not work as it should: one branch of the tree that :mod:`wegeft.contracts.errors` draws."""

from __future__ import annotations

from wegeft.contracts.problems import WegeftError


class Broken(WegeftError):
    """A part that the service stands on does not work."""

    code, http_status, exit_status, is_retryable = "broken", 503, 7, True


class DigestMismatch(Broken):
    """The bytes do not match their digest."""

    code, http_status, is_retryable = "digest_mismatch", 502, False


class SignatureInvalid(Broken):
    """The signature does not hold."""

    code, http_status, is_retryable = "signature_invalid", 502, False


class UntrustedKey(Broken):
    """The signature is by a key that is not trusted."""

    code, http_status, is_retryable = "untrusted_key", 502, False


class StorageFull(Broken):
    """The storage has no room left."""

    code, http_status = "storage_full", 507


class StorageUnavailable(Broken):
    """The object store does not answer."""

    code = "storage_unavailable"


class DatabaseUnavailable(Broken):
    """The database does not answer."""

    code = "database_unavailable"


class ServiceUnreachable(Broken):
    """The service cannot be reached."""

    code = "service_unreachable"


class ServiceTimeout(Broken):
    """The service did not answer in time."""

    code, http_status = "service_timeout", 504


class PortTaken(Broken):
    """The port is already in use."""

    code, is_retryable = "port_taken", False


class StartFailed(Broken):
    """The service did not start."""

    code, is_retryable = "start_failed", False


class UnexpectedAnswer(Broken):
    """The answer is not one of this protocol."""

    code, http_status, is_retryable = "unexpected_answer", 502, False
