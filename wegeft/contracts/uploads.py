"""Sending bytes in parts, so that what has come once is not sent again, whoever dies meanwhile."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from wegeft.contracts.adapter import Digest

ONE_REQUEST_BYTES = 8 << 20
"""The most that is sent for an adapter at once; more goes in parts."""
OFFSET_HEADER = "Upload-Offset"
"""Bytes that have come, as the answer to HEAD says."""
LENGTH_HEADER = "Upload-Length"
"""Bytes in all."""


class UploadRequest(BaseModel):
    """Bytes that are to be sent in parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest
    """Of the whole."""
    size: Annotated[int, Field(ge=1, lt=2**62)]


class UploadView(BaseModel):
    """An upload, as far as it is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: Annotated[str, Field(max_length=32)]
    """Empty where nothing is left to send."""
    size: Annotated[int, Field(ge=1)]
    offset: Annotated[int, Field(ge=0)]
    """Bytes that have come: where the next part begins."""
    part_bytes: Annotated[int, Field(ge=1)]
    """Bytes of each part; the last one has what is left."""
    expires_at: AwareDatetime
    """Until when it must go on."""

    @property
    def is_stored(self) -> bool:
        """Whether the server has the whole already."""
        return not self.id


class AdapterUploadRequest(UploadRequest):
    """A file of an adapter that is to be sent in parts."""

    may_be_direct: bool = False
    """Whether the sender can put parts to addresses of the store itself."""


class PartAddress(BaseModel):
    """Where one part of an upload is put, by whoever has the address, until it expires."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    offset: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(ge=1)]
    url: Annotated[str, Field(max_length=8192)]


class AdapterUploadView(UploadView):
    """An upload of an adapter's file, as far as it is."""

    is_direct: bool = False
    """Whether its parts are put to the store itself, in any order; ``offset`` is then how many bytes have come."""
    addresses: tuple[PartAddress, ...] = ()
    """For some of the parts that have not come; look again for the next ones."""
