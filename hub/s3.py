"""Blobs in an S3 store, through the MinIO SDK; and ``open_store``, which makes a store of a URL.

Needs only what every S3 server has: put, get with a range, head, delete, multipart uploads and presigned GETs. No conditional
write is needed, because a key holds the digest of what it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import urllib3
from minio import Minio
from minio.commonconfig import CopySource
from minio.error import S3Error
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from hub.folder_store import FolderStore
from hub.objects import CHUNK_BYTES, MemoryStore, ObjectStore, Readable, VerifiedSource, absence_of, check_span
from hub.s3_errors import s3_errors
from hub.s3_staging import S3Staging
from wegeft.contracts.adapter import check_digest
from wegeft.contracts.errors import BlobNotFound, DigestMismatch, InvalidSetting, StorageUnavailable, WegeftError

CONNECT_SECONDS = 5
READ_SECONDS = 10
"""How long the server may be silent; whoever waits for us has hardly more patience."""
_RETRIES = 2
_PART_BYTES = 8 << 20
"""An upload holds two parts in memory; ten thousand parts make 80 GiB."""


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """How to reach an S3 server; the secret is never shown."""

    endpoint: str
    """``http://host:port`` or ``https://host``."""
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    public_endpoint: str | None = None
    """As clients reach it, for addresses that are given to them; None: as we do."""


def open_store(url: str, access: S3Access | None = None) -> ObjectStore:
    """Return the store that a URL names: ``memory:``, ``file:///path`` or ``s3://bucket/prefix``, made ready where need be.

    Raises :class:`InvalidSetting` for any other URL, and :class:`StorageUnavailable` where the store does not work.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "memory" if url == "memory:":
            return MemoryStore()
        case "file" if parts.path.startswith("/") and not parts.netloc:
            return FolderStore(Path(unquote(parts.path)))
        case "s3" if parts.netloc and access is not None:
            return _open_bucket(parts.netloc, parts.path.strip("/"), access)
        case "s3" if parts.netloc:
            raise InvalidSetting("an S3 store needs an endpoint, an access key and a secret key", path="store", value=url)
        case _:
            raise InvalidSetting("not a store", path="store", value=url, hint="memory:, file:///folder or s3://bucket/prefix")


def _open_bucket(bucket: str, prefix: str, access: S3Access) -> S3Store:
    client = _client(access, access.endpoint, "s3_endpoint")
    public = _client(access, access.public_endpoint, "s3_public_endpoint") if access.public_endpoint else client
    store = S3Store(client, bucket, prefix, public)
    try:
        store.make_bucket()
    except ValueError as error:
        raise _not_usable(error, f"s3://{bucket}/{prefix}") from error
    return store


def _client(access: S3Access, url: str, setting: str) -> Minio:
    endpoint = urlsplit(url)
    if endpoint.scheme not in {"http", "https"} or not endpoint.netloc or endpoint.path.strip("/") or "@" in endpoint.netloc:
        raise InvalidSetting("not an S3 endpoint", path=setting, value=endpoint.hostname or "", hint="http://host:port or https://host")
    timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
    retries = _Retries(total=_RETRIES, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504), raise_on_status=False)
    try:
        return Minio(
            endpoint=endpoint.netloc,
            access_key=access.access_key,
            secret_key=access.secret_key,
            secure=endpoint.scheme == "https",
            region=access.region,
            http_client=urllib3.PoolManager(timeout=timeout, retries=retries, maxsize=16),
        )
    except ValueError as error:
        raise _not_usable(error, url) from error


def _not_usable(error: ValueError, url: str) -> InvalidSetting:
    return InvalidSetting(f"not usable for S3: {error}", path="store", value=url)


class _Retries(urllib3.Retry):
    """Tries again; after silence once only, for a dead connection's sake: threads that wait for a silent server serve nobody."""

    def increment(self, *args: Any, **kwargs: Any) -> Self:
        """Return what is left of the retries; raise the error where that is nothing."""
        error = kwargs.get("error")
        if isinstance(error, ReadTimeoutError) and any(isinstance(before.error, ReadTimeoutError) for before in self.history):
            raise error
        return super().increment(*args, **kwargs)


class S3Store:
    """Blobs in a bucket, as ``prefix/sha256/ab/cd/abcd…``.

    An upload is hashed while it is sent. S3 shows an object only when its upload is completed, and the SDK completes it only after
    it has read the end of the source, which :class:`VerifiedSource` lets it reach by the right bytes alone; otherwise it aborts.
    So nothing is spooled to disk, and no wrong byte is ever visible. An upload cut off by a crash leaves parts that nobody sees:
    let the bucket's lifecycle abort incomplete multipart uploads.
    """

    def __init__(self, client: Minio, bucket: str, prefix: str = "", public: Minio | None = None) -> None:
        """``public``: makes addresses for others, and is never asked itself."""
        self._client, self._bucket, self._prefix = client, bucket, f"{prefix}/" if prefix else ""
        self._public = public or client

    def make_bucket(self) -> None:
        """Create the bucket unless it is there; raise :class:`StorageUnavailable` where that fails."""
        with self._named_errors():
            if self._client.bucket_exists(bucket_name=self._bucket):
                return
            try:
                self._client.make_bucket(bucket_name=self._bucket)
            except S3Error as error:
                if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    raise

    def put(self, digest: str, source: Readable, size: int | None = None) -> int:
        """See :meth:`ObjectStore.put`."""
        verified, key = VerifiedSource(source, digest, size), self._key(digest)
        with self._named_errors():
            self._client.put_object(
                bucket_name=self._bucket, object_name=key, data=verified, length=-1, part_size=_PART_BYTES, num_parallel_uploads=1
            )
        return verified.size

    def get(self, digest: str) -> Iterator[bytes]:
        """See :meth:`ObjectStore.get`; a broken connection is taken up again where it broke."""
        received, tries = 0, _RETRIES
        with self._named_errors(digest):
            while True:
                try:
                    for chunk in self._stream(digest, received):
                        received, tries = received + len(chunk), _RETRIES
                        yield chunk
                except (ProtocolError, ReadTimeoutError):
                    if not tries:
                        raise
                    tries -= 1
                else:
                    return

    def range(self, digest: str, start: int, length: int) -> bytes:
        """See :meth:`ObjectStore.range`."""
        check_span(start, length)
        with self._named_errors(digest):
            try:
                # S3 cannot be asked for no bytes
                return b"".join(self._stream(digest, start, max(length, 1)))[:length]
            except S3Error as error:
                if error.code != "InvalidRange":
                    raise
                return b""

    def has(self, digest: str) -> int | None:
        """See :meth:`ObjectStore.has`."""
        with self._named_errors():
            try:
                found = self._client.stat_object(bucket_name=self._bucket, object_name=self._key(digest))
            except S3Error as error:
                if error.code != "NoSuchKey":
                    raise
                self._check_bucket()
                return None
        size: int = found.size
        return size

    def delete(self, digest: str) -> None:
        """See :meth:`ObjectStore.delete`."""
        with self._named_errors():
            self._client.remove_object(bucket_name=self._bucket, object_name=self._key(digest))
            self._client.remove_object(bucket_name=self._bucket, object_name=self._rotten_key(digest))

    def set_aside(self, digest: str) -> None:
        """See :meth:`ObjectStore.set_aside`; the server copies, and what lies aside stays until the blob is deleted."""
        key = self._key(digest)
        with suppress(BlobNotFound, DigestMismatch), self._named_errors(digest):
            source = CopySource(bucket_name=self._bucket, object_name=key)
            self._client.copy_object(bucket_name=self._bucket, object_name=self._rotten_key(digest), source=source)
            self._client.remove_object(bucket_name=self._bucket, object_name=key)

    def presign(self, digest: str, seconds: int, file_name: str | None = None) -> str | None:
        """See :meth:`ObjectStore.presign`."""
        saved = {"response-content-disposition": f'attachment; filename="{file_name}"'} if file_name else None
        with self._named_errors():
            url: str = self._public.presigned_get_object(
                bucket_name=self._bucket, object_name=self._key(digest), expires=timedelta(seconds=seconds), response_headers=saved
            )
        return url

    def staging(self) -> S3Staging | None:
        """See :meth:`ObjectStore.staging`."""
        return S3Staging(self._client, self._public, self._bucket, self._prefix, self._key)

    def _key(self, digest: str) -> str:
        name = check_digest(digest).removeprefix("sha256:")
        return f"{self._prefix}sha256/{name[:2]}/{name[2:4]}/{name}"

    def _rotten_key(self, digest: str) -> str:
        return f"{self._key(digest)}.rotten"

    def _absence(self, digest: str) -> WegeftError:
        with self._named_errors():
            try:
                self._client.stat_object(bucket_name=self._bucket, object_name=self._rotten_key(digest))
            except S3Error as error:
                if error.code != "NoSuchKey":
                    raise
                return absence_of(digest, is_set_aside=False)
        return absence_of(digest, is_set_aside=True)

    def _stream(self, digest: str, start: int, length: int = 0) -> Iterator[bytes]:
        """Yield ``length`` bytes from ``start`` on; all of them where it is 0."""
        response = self._client.get_object(bucket_name=self._bucket, object_name=self._key(digest), offset=start, length=length)
        try:
            yield from response.stream(CHUNK_BYTES)
        finally:
            response.close()
            response.release_conn()

    def _check_bucket(self) -> None:
        """The answer to a HEAD has no body, so there a missing bucket looks like a missing key."""
        if not self._client.bucket_exists(bucket_name=self._bucket):
            raise StorageUnavailable("the bucket does not exist", value=self._bucket, hint="create it, or set the store's URL")

    @contextmanager
    def _named_errors(self, digest: str | None = None) -> Iterator[None]:
        with s3_errors():
            try:
                yield
            except S3Error as error:
                if error.code == "NoSuchKey" and digest is not None:
                    raise self._absence(digest) from error
                raise
