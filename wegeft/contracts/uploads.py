"""Sending bytes in parts, so that what has come once is not sent again, whoever dies meanwhile."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wegeft.contracts.adapter import Digest
from wegeft.contracts.federation import Instant, Message

OFFSET_HEADER = "Upload-Offset"
"""Bytes that have come, as the answer to HEAD says."""
LENGTH_HEADER = "Upload-Length"
"""Bytes in all."""


class UploadRequest(Message):
    """Bytes that are to be sent in parts."""

    digest: Digest
    """Of the whole."""
    size: Annotated[int, Field(ge=1, lt=2**62)]


class UploadView(Message):
    """An upload, as far as it is."""

    id: Annotated[str, Field(max_length=32)]
    """Empty where nothing is left to send."""
    size: Annotated[int, Field(ge=1)]
    offset: Annotated[int, Field(ge=0)]
    """Bytes that have come: where the next part begins."""
    part_bytes: Annotated[int, Field(ge=1)]
    """Bytes of each part; the last one has what is left."""
    expires_at: Instant
    """Until when it must go on."""

    @property
    def is_stored(self) -> bool:
        """Whether the server has the whole already."""
        return not self.id
