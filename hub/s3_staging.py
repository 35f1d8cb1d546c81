"""Bytes that clients send to the S3 server themselves: they lie apart, under no digest, until the hub has read and verified them.

Each upload is a multipart upload under a name of its own. Its addresses are worth nothing once it is completed, so nobody changes what has
been verified; only then does the server copy it under its digest. The SDK has these calls under private names alone (7.2), hence the pin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from minio import Minio
from minio.commonconfig import CopySource
from minio.error import S3Error

from hub.objects import CHUNK_BYTES
from hub.s3_errors import s3_errors

_GONE = {"NoSuchUpload", "NoSuchKey"}


class S3Staging:
    """Uploads by name, each a multipart upload of its own; see :class:`hub.objects.Staging`."""

    def __init__(self, client: Minio, public: Minio, bucket: str, prefix: str, key_of: Callable[[str], str]) -> None:
        """``public`` makes addresses for clients; ``key_of``: where the blob of a digest lies."""
        self._client, self._public, self._bucket, self._prefix, self._key_of = client, public, bucket, prefix, key_of

    def begin(self, name: str) -> str:
        """See :meth:`Staging.begin`."""
        with s3_errors():
            upload: str = self._client._create_multipart_upload(self._bucket, self._key(name), {})  # noqa: SLF001
        return upload

    def address(self, name: str, upload: str, number: int, seconds: int) -> str:
        """See :meth:`Staging.address`."""
        asked = {"uploadId": upload, "partNumber": str(number)}
        with s3_errors():
            url: str = self._public.get_presigned_url(
                "PUT", self._bucket, self._key(name), expires=timedelta(seconds=seconds), extra_query_params=asked
            )
        return url

    def parts(self, name: str, upload: str) -> dict[int, int] | None:
        """See :meth:`Staging.parts`."""
        listed = self._listed(name, upload)
        return None if listed is None else {part.part_number: part.size for part in listed}

    def _listed(self, name: str, upload: str) -> list[Any] | None:
        found: list[Any] = []
        after: int | None = None
        with s3_errors():
            try:
                while True:
                    page = self._client._list_parts(self._bucket, self._key(name), upload, part_number_marker=after)  # noqa: SLF001
                    found += page.parts
                    if not page.is_truncated:
                        return found
                    after = page.next_part_number_marker
            except S3Error as error:
                if error.code in _GONE:
                    return None
                raise

    def complete(self, name: str, upload: str, sizes: Mapping[int, int]) -> bool:
        """See :meth:`Staging.complete`."""
        listed = self._listed(name, upload)
        if listed is None:
            return True
        if {(part.part_number, part.size) for part in listed} != set(sizes.items()):  # some servers list each part of a number
            return False
        with s3_errors():
            # It names the parts by their tags, so the server refuses what has come instead of them since.
            self._client._complete_multipart_upload(self._bucket, self._key(name), upload, listed)  # noqa: SLF001
        return True

    def size(self, name: str) -> int | None:
        """See :meth:`Staging.size`."""
        with s3_errors():
            try:
                found: int = self._client.stat_object(bucket_name=self._bucket, object_name=self._key(name)).size
            except S3Error as error:
                if error.code in _GONE:
                    return None
                raise
        return found

    def adopt(self, name: str, digest: str) -> str:
        """See :meth:`Staging.adopt`."""
        with s3_errors():
            response = self._client.get_object(bucket_name=self._bucket, object_name=self._key(name))
            try:
                sha256, tag = hashlib.sha256(), response.headers.get("ETag", "").strip('"')
                for chunk in response.stream(CHUNK_BYTES):
                    sha256.update(chunk)
            finally:
                response.close()
                response.release_conn()
            found = f"sha256:{sha256.hexdigest()}"
            if found == digest:
                source = CopySource(bucket_name=self._bucket, object_name=self._key(name), match_etag=tag or None)
                self._client.copy_object(bucket_name=self._bucket, object_name=self._key_of(digest), source=source)
        return found

    def discard(self, name: str) -> None:
        """See :meth:`Staging.discard`."""
        key = self._key(name)
        with s3_errors():
            for found in self._client._list_multipart_uploads(self._bucket, prefix=key).uploads:  # noqa: SLF001
                self._abort(key, found.upload_id)
            self._client.remove_object(bucket_name=self._bucket, object_name=key)

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._client._abort_multipart_upload(self._bucket, key, upload)  # noqa: SLF001
        except S3Error as error:
            if error.code not in _GONE:
                raise

    def _key(self, name: str) -> str:
        return f"{self._prefix}staging/{name}"
