"""What a pull begins with: a version and its short files, in one answer.

The answer is a line of JSON, a :class:`PullView`, and after it the bytes of the files that it says follow, one behind the other: their
lengths are in the manifest. Bytes in JSON and base64 would take longer than another way there and back.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from wegeft.contracts.adapter import VersionView
from wegeft.contracts.errors import UnexpectedAnswer
from wegeft.contracts.signing_keys import KeySet

PULL_TYPE = "application/vnd.wegeft.pull"
"""Media type of the answer."""
MAX_FOLLOWING_BYTES = 2 << 20
"""Of all files that follow: the hub holds them, and so does the reader. Longer ones are fetched by themselves."""


class PullView(BaseModel):
    """A version and the keys to check it with; nothing in it is to be believed before it is checked."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: VersionView
    following: tuple[str, ...] = Field(default=(), max_length=100)
    """Paths of the files whose bytes come after, in their order; any may be missing, and is then fetched by itself."""
    addresses: dict[str, str] = Field(default_factory=dict)
    """Where files are to be had from the store itself, for a while, by path."""
    keys: KeySet
    """For who meets this hub for the first time; none where it has never signed."""


def write_pull(view: PullView, contents: Mapping[str, bytes]) -> bytes:
    """Return the answer that tells ``view``, with the files that follow; ``contents`` by path."""
    return b"".join([view.model_dump_json().encode(), b"\n", *(contents[path] for path in view.following)])


def read_pull(content: bytes) -> tuple[PullView, dict[str, memoryview]]:
    """Return the view of an answer and the files that follow, by path, as long as the manifest says; their bytes are not checked yet.

    They are not copied: as long as one of them is kept, so is the whole answer. Raises :class:`UnexpectedAnswer` where fewer or more bytes
    follow, and pydantic's ``ValidationError`` for another line.
    """
    found = content.find(b"\n")
    end_of_line = len(content) if found < 0 else found
    view, at = PullView.model_validate_json(content[:end_of_line]), end_of_line + 1
    sizes = {entry.path: entry.size for entry in view.version.manifest.files}
    contents: dict[str, memoryview] = {}
    whole = memoryview(content)
    for path in view.following:
        end = at + sizes.get(path, 0)
        contents[path], at = whole[at:end], end
    if at != max(len(content), end_of_line + 1) or len(contents) != len(view.following):
        raise UnexpectedAnswer("other bytes follow than the answer says", path=view.version.ref, value=len(content) - end_of_line - 1)
    return view, contents
