"""Images of a zip archive, each in the folder of its label; entries are read within bounds, and nothing is extracted."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from wegeft.contracts.errors import InvalidData, Problem
from wegeft.contracts.job import DatasetSpec
from workers.images import IMAGE_BYTES_LIMIT
from workers.located import Located

ENTRIES_LIMIT = 1_000_000
EXPANSION_LIMIT = 10
"""All entries together may have ``IMAGE_BYTES_LIMIT`` bytes and so many times those of the archive: images hardly compress."""
_ENDINGS = (".png", ".jpg", ".jpeg")
_NOTES = (".txt", ".md")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_IS_ENCRYPTED = 1


def archive_records(path: Path, spec: DatasetSpec) -> Iterator[Located]:
    """Yield a record for each image ``…/label/name.png``, by name; hidden files and notes (.txt, .md) are passed over.

    Raises ``InvalidData`` if the file is no zip archive, or has too many entries or bytes.
    """
    allowed = IMAGE_BYTES_LIMIT + EXPANSION_LIMIT * path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted((entry for entry in archive.infolist() if _is_wanted(entry)), key=lambda entry: entry.filename)
            if len(archive.infolist()) > ENTRIES_LIMIT:
                raise InvalidData(f"the archive has more than {ENTRIES_LIMIT} entries")
            for row, entry in enumerate(entries, 1):
                content = _problem(entry) or _read(archive, entry)
                if isinstance(content, bytes):
                    allowed -= len(content)
                if allowed < 0:
                    raise InvalidData(f"the archive unpacks to more than {EXPANSION_LIMIT} times its size")
                yield Located(_record(entry, content, spec), row, name=entry.filename)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise InvalidData(f"not a readable zip archive: {error}") from error


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    name = PurePosixPath(entry.filename)
    is_hidden = any(part.startswith(".") and part != ".." for part in name.parts) or "__MACOSX" in name.parts
    return not (entry.is_dir() or is_hidden or name.suffix.lower() in _NOTES)


def _problem(entry: zipfile.ZipInfo) -> Problem | None:
    """Return what keeps an entry from being read at all."""
    name = PurePosixPath(entry.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.filename:
        return Problem(message="a name that leads out of the archive")
    if len(name.parts) < 2:
        return Problem(message="the image stands in no folder", hint="its folder's name is its label: label/image.png")
    if name.suffix.lower() not in _ENDINGS:
        return Problem(message="neither PNG nor JPEG", hint=f"one of: {', '.join(_ENDINGS)}")
    if entry.flag_bits & _IS_ENCRYPTED or entry.compress_type not in _METHODS:
        return Problem(message="encrypted, or compressed in a way that is not read", hint="zip it plainly")
    return None


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes | Problem:
    try:
        with archive.open(entry) as file:
            content = file.read(IMAGE_BYTES_LIMIT + 1)  # What the entry says of its size may be a lie.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        return Problem(message=f"the entry is broken: {error}")
    if len(content) > IMAGE_BYTES_LIMIT:
        return Problem(message=f"the image has more than {IMAGE_BYTES_LIMIT >> 20} MiB")
    return content


def _record(entry: zipfile.ZipInfo, content: bytes | Problem, spec: DatasetSpec) -> dict[str, object] | Problem:
    if isinstance(content, Problem):
        return content
    return {spec.field_image: content, spec.field_label: PurePosixPath(entry.filename).parent.name}
