"""Which rows share a packed sequence: bins of at most so many tokens, filled best-fit decreasing within windows of random rows.

Best fit decreasing puts each row, longest first, into the fullest bin that still takes it. Over a whole data set at once it would put
rows of like length together; over windows of random rows bins stay a fair mix and hardly less full.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

Bin = tuple[int, ...]
"""Row numbers of one packed sequence."""

WINDOW_ROWS = 2048


def fill_bins(lengths: Sequence[int], order: Sequence[int], capacity: int, window_rows: int = WINDOW_ROWS) -> tuple[Bin, ...]:
    """Return bins that hold each row of ``order`` once, none over ``capacity`` tokens; a pure function of its arguments.

    lengths: tokens of each row, each at most ``capacity``. order: row numbers, in random order. O(n log n + n · bins of a window).
    """
    bins: list[Bin] = []
    for start in range(0, len(order), window_rows):
        bins += _fill(lengths, order[start : start + window_rows], capacity)
    return tuple(bins)


def _fill(lengths: Sequence[int], rows: Sequence[int], capacity: int) -> list[Bin]:
    filled: list[list[int]] = []
    free: list[tuple[int, int]] = []
    """(tokens that are left, bin), sorted, so that the first one that suffices is the fullest."""
    for row in sorted(rows, key=lambda row: -lengths[row]):
        place = bisect_left(free, (lengths[row], -1))
        if place < len(free):
            left, number = free.pop(place)
        else:
            left, number = capacity, len(filled)
            filled.append([])
        filled[number].append(row)
        insort(free, (left - lengths[row], number))
    return [tuple(rows) for rows in filled]
