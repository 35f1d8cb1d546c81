"""What a pull begins with: all but the long files of a version, in one answer."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from wegeft.contracts.adapter import VersionView
from wegeft.contracts.signing_keys import KeySet

MAX_INLINE_BYTES = 128 << 10
"""Of a file that comes with the answer; for a megabyte, base64 within JSON was slower than another way there and back."""


class PullView(BaseModel):
    """A version, its short files and the keys to check it with; nothing in it is to be believed before it is checked."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: VersionView
    contents: dict[str, str] = Field(default_factory=dict)
    """Short files in base64, by path; any may be missing, and is then fetched by itself."""
    keys: KeySet
    """For who meets this hub for the first time; none where it has never signed."""
