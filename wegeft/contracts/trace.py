"""The W3C's Trace Context: which requests of several services belong to one undertaking.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEADER = "traceparent"

_VERSION_00 = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_LATER_VERSION = re.compile(r"(?!00|ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?\Z", re.DOTALL)


@dataclass(frozen=True)
class TraceContext:
    """One step of a trace."""

    trace_id: str
    """32 hexadecimal digits, not all zero; the same for everything that belongs together."""
    span_id: str
    """16 hexadecimal digits, not all zero; this step's own."""
    is_sampled: bool = True

    def header(self) -> str:
        """Return the value of ``traceparent`` that hands this step on as the parent of the next."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.is_sampled):02x}"


def parse_trace(value: str) -> TraceContext | None:
    """Return what a ``traceparent`` says; None where the recommendation says to start a trace of one's own instead (§3.2)."""
    found = _VERSION_00.match(value) or _LATER_VERSION.match(value)
    if found is None:
        return None
    trace_id, span_id, flags = found.groups()
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, is_sampled=bool(int(flags, 16) & 1))
