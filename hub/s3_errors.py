"""What an S3 server's refusals mean, in the names of our own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree.ElementTree import ParseError

from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

from wegeft.contracts.errors import StorageFull, StorageUnavailable, WegeftError

_REFUSALS = {"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "RequestTimeTooSkewed"}
_FULL = {"EntityTooLarge", "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}


@contextmanager
def s3_errors() -> Iterator[None]:
    """Raise :class:`StorageUnavailable` or :class:`StorageFull` for whatever the SDK raises; ours pass."""
    try:
        yield
    except S3Error as error:
        raise _explain(error) from error
    except HTTPError as error:
        raise StorageUnavailable(f"the S3 server does not answer: {type(error).__name__}") from error
    except (MinioException, ParseError, UnicodeDecodeError) as error:
        raise StorageUnavailable(f"the S3 server's answer makes no sense: {type(error).__name__}") from error


def _explain(error: S3Error) -> WegeftError:
    if error.code in _FULL:
        return StorageFull("the S3 server has no room left", hint=f"it answers {error.code}; nothing was stored")
    if error.code in _REFUSALS:
        return StorageUnavailable(
            f"the S3 server refuses our credentials: {error.code}", hint="check the access key, the secret key and what they may do"
        )
    return StorageUnavailable(f"the S3 server answers {error.code}", hint=error.message)
