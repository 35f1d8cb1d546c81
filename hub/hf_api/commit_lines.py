"""A commit's body as it comes: a JSON object a line, in flat memory however long the files in it are.

A long text within a line can only be a file in base64. It is decoded into a temporary file while it comes, and the line is read
as if a mark stood in its place, which nobody can guess.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import secrets
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from hub.objects import Readable
from hub.strict_json import parse_object
from wegeft.contracts.errors import InvalidRequest, TooLarge, WegeftError

MAX_LINES = 300
"""A version holds a handful of files; clients put at most 256 into a commit before they know that."""
MAX_LINE_BYTES = 1 << 18
"""Of what is not a file's bytes."""
_LONG_TEXT = 1 << 16
_CHUNK_BYTES = 1 << 18
_OUTSIDE = re.compile(rb'["\n]')
_INSIDE = re.compile(rb'["\\\n]')


class Content:
    """A file's bytes, decoded; in memory while they are few."""

    def __init__(self, max_bytes: int) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115 - closed by close()
        self._hash = hashlib.sha256()
        self._max_bytes = max_bytes
        self._rest = b""
        self._is_padded = False
        self.size = 0
        """Bytes."""

    @property
    def digest(self) -> str:
        """The ``sha256:…`` name of the bytes."""
        return f"sha256:{self._hash.hexdigest()}"

    def add(self, encoded: bytes) -> None:
        """Take the next part in base64; raise :class:`InvalidRequest` for what is none, and :class:`TooLarge`."""
        encoded = self._rest + encoded
        whole = len(encoded) - len(encoded) % 4
        self._rest = encoded[whole:]
        if whole:
            self._write(_decoded(encoded[:whole], is_over=self._is_padded))
            self._is_padded = encoded[:whole].endswith(b"=")

    def end(self) -> None:
        """Say that all has come; raise :class:`InvalidRequest` where it ends within a group of four."""
        if self._rest:
            raise _not_base64("it ends early")

    def _write(self, decoded: bytes) -> None:
        self.size += len(decoded)
        if self.size > self._max_bytes:
            raise TooLarge(f"a file is longer than {self._max_bytes} bytes", path="content")
        self._hash.update(decoded)
        self._file.write(decoded)

    def open(self) -> IO[bytes]:
        """Return the bytes from their beginning."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Forget the bytes."""
        self._file.close()


def content_of(encoded: str, max_bytes: int) -> Content:
    """Return a file that came as a short text."""
    content = Content(max_bytes)
    try:
        content.add(encoded.encode())
        content.end()
    except WegeftError:
        content.close()
        raise
    return content


def _decoded(encoded: bytes, *, is_over: bool) -> bytes:
    if is_over:
        raise _not_base64("it goes on after its end")
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except binascii.Error as error:
        raise _not_base64(str(error)) from error


def _not_base64(why: str) -> InvalidRequest:
    return InvalidRequest(f"not base64: {why}", path="content", hint='"encoding": "base64", without line breaks')


@dataclass
class Line:
    """One line, read."""

    number: int
    value: dict[str, Any]
    contents: dict[str, Content] = field(default_factory=dict)
    """Files by the mark that stands for each."""

    def content(self, text: str, max_bytes: int) -> Content:
        """Return the file that a text of this line means: the one that it marks, or its own base64."""
        return self.contents.pop(text, None) or content_of(text, max_bytes)

    def close(self) -> None:
        """Forget the files that nobody took."""
        for content in self.contents.values():
            content.close()


def read_lines(source: Readable, max_file_bytes: int) -> Generator[Line, None, None]:
    """Yield the lines of a body; raise :class:`InvalidRequest` or :class:`TooLarge` at the first that cannot be one."""
    reader = _LineReader(max_file_bytes)
    try:
        while chunk := source.read(_CHUNK_BYTES):
            yield from reader.feed(chunk)
        yield from reader.feed(b"\n")
    finally:
        reader.close()


class _LineReader:
    """Cuts a stream into lines, and long texts out of them."""

    def __init__(self, max_file_bytes: int) -> None:
        self._max_file_bytes = max_file_bytes
        self._number = 0
        self._begin_line()

    def _begin_line(self) -> None:
        self._number += 1
        self._text = bytearray()
        self._contents: dict[str, Content] = {}
        self._string_at: int | None = None
        """Where in the text the string began that we are in."""
        self._is_escaped = False
        self._content: Content | None = None

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """Take the next bytes and yield the lines that end in them."""
        at = 0
        while at < len(chunk):
            if self._is_escaped:
                self._is_escaped = False
                self._add(chunk[at : at + 1])
                at += 1
                continue
            found = (_OUTSIDE if self._string_at is None else _INSIDE).search(chunk, at)
            end = found.start() if found else len(chunk)
            self._add(chunk[at:end])
            at = end + 1
            if found and found[0] == b"\n":
                yield from self._end_line()
            elif found:
                self._mark(found[0])

    def _mark(self, mark: bytes) -> None:
        """Take a quote, or a backslash within a string."""
        if mark == b"\\":
            self._add(mark)
            self._is_escaped = True
        elif self._string_at is None:
            self._add(mark)
            self._string_at = len(self._text)
        else:
            self._end_string()

    def _add(self, part: bytes) -> None:
        if self._content is not None:
            self._content.add(part)
            return
        self._text += part
        if self._string_at is not None and len(self._text) - self._string_at > _LONG_TEXT:
            self._content = Content(self._max_file_bytes)
            self._content.add(bytes(self._text[self._string_at :]))
            del self._text[self._string_at :]
        if len(self._text) > MAX_LINE_BYTES:
            raise TooLarge(f"a line is longer than {MAX_LINE_BYTES} bytes beside its file", path=self._place)

    def _end_string(self) -> None:
        if self._content is not None:
            self._content.end()
            name = f"content:{secrets.token_hex(16)}"
            self._contents[name], self._content = self._content, None
            self._text += name.encode()
        self._text += b'"'
        self._string_at = None

    @property
    def _place(self) -> str:
        return f"line {self._number}"

    def _end_line(self) -> Iterator[Line]:
        if self._number > MAX_LINES:
            raise TooLarge(f"more than {MAX_LINES} lines", path="body", hint="a version holds a handful of files")
        if self._string_at is not None:
            raise InvalidRequest("the line ends within a text", path=self._place)
        if self._text.strip():
            try:
                line = Line(self._number, parse_object(bytes(self._text)), self._contents)
            except ValueError as error:
                raise InvalidRequest(f"not a JSON object: {error}", path=self._place) from error
            yield line
            line.close()
        self._begin_line()

    def close(self) -> None:
        """Forget what was begun."""
        for content in (*self._contents.values(), *([self._content] if self._content else [])):
            content.close()
