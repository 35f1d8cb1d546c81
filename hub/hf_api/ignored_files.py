"""Which files a client would rather not send: git's own, the hub's signatures, and what a ``.gitignore`` names."""

from __future__ import annotations

import fnmatch

from hub.signature_files import KINDS

_NEVER_SENT = frozenset({".gitattributes", ".gitignore", *KINDS})
_MAX_LINES = 1000


def is_ignored(path: str, gitignore: str | None) -> bool:
    """Return whether a file is left out; of the lines of a ``.gitignore`` that fit its name, the last one decides (gitignore(5))."""
    if path in _NEVER_SENT:
        return True
    decision = False
    for line in (gitignore or "").splitlines()[:_MAX_LINES]:
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            is_exception = pattern.startswith("!")
            if _fits(path, pattern.removeprefix("!")):
                decision = not is_exception
    return decision


def _fits(path: str, pattern: str) -> bool:
    """Versions have no folders, so a pattern for one fits every file below it or none."""
    parts, is_anchored = path.split("/"), "/" in pattern.strip("/") or pattern.startswith("/")
    names = parts[:-1] if pattern.endswith("/") else parts
    bare = pattern.strip("/").removeprefix("**/")
    if is_anchored and not pattern.startswith("**/"):
        ends = range(1, len(names) + 1)
        return any(fnmatch.fnmatchcase("/".join(parts[:end]), bare.removesuffix("/**")) for end in ends)
    return any(fnmatch.fnmatchcase(name, bare) for name in names)
