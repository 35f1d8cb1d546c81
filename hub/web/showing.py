"""How values read on a page: times, sizes, digests, numbers and states."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = ((86_400 * 365, "year"), (86_400 * 30, "month"), (86_400, "day"), (3600, "hour"), (60, "minute"))


def show_ago(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment was, roughly."""
    seconds = (now - moment).total_seconds()
    text, is_past = _span(abs(seconds)), seconds >= 0
    if text is None:
        return "just now"
    return f"{text} ago" if is_past else f"in {text}"


def _span(seconds: float) -> str | None:
    for size, unit in _UNITS:
        count = int(seconds // size)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return None


def show_duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def show_exact(moment: datetime) -> str:
    """Return a moment to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def show_bytes(size: float) -> str:
    """Return a size in the largest unit that leaves a number above 1."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def show_number(value: float) -> str:
    """Return a number with the digits that matter."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.5g}"


def show_digest(digest: str) -> str:
    """Return the beginning of a digest, for a place that has the whole in its title."""
    name = digest.removeprefix("sha256:")
    return f"{name[:12]}…"


def show_model(identity: str) -> str:
    """Return a base model as a person calls it: without its pin, and a path by its last part."""
    name = identity.partition("@")[0]
    return name.rpartition("/")[2] if name.startswith("/") else name


def show_words(name: str) -> str:
    """Return an identifier as words."""
    return name.replace("_", " ")
