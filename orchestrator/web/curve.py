"""A curve of a few series over steps, as a drawing that a page holds: no script, no style of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 28
_MOST_POINTS = 500
"""Of a series, so that a page stays small however long a job is."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values by step."""

    name: str
    points: tuple[tuple[int, float], ...]
    """Step and value, by step."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis: where it is drawn, and what it says."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series as it is drawn."""

    name: str
    path: str
    """For ``points`` of a ``polyline``."""
    last: tuple[float, float]
    last_value: float
    is_single: bool


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Everything that a template needs to draw."""

    lines: tuple[Line, ...]
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]
    summary: str
    """For who does not see it."""

    left, right, top, bottom, width, height = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM, WIDTH, HEIGHT


def draw(series: Sequence[Series]) -> Curve | None:
    """Return the curve of the series that have points; None where none has."""
    shown = [one for one in (Series(name=one.name, points=thin(one.points)) for one in series) if one.points]
    if not shown:
        return None
    steps = [step for one in shown for step, _ in one.points]
    values = [value for one in shown for _, value in one.points]
    across, up = (min(steps), max(*steps, min(steps) + 1)), _room(min(values), max(values))

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (step - across[0]) / (across[1] - across[0]) * (WIDTH - _RIGHT - _LEFT)
        y = HEIGHT - _BOTTOM - (value - up[0]) / (up[1] - up[0]) * (HEIGHT - _BOTTOM - _TOP)
        return round(x, 1), round(y, 1)

    lines = []
    for one in shown:
        path = [place(step, value) for step, value in one.points]
        text = " ".join(f"{x},{y}" for x, y in path)
        lines.append(Line(name=one.name, path=text, last=path[-1], last_value=one.points[-1][1], is_single=len(path) == 1))
    return Curve(
        lines=tuple(lines),
        rows=tuple(Tick(at=place(across[0], value)[1], label=f"{value:.4g}") for value in _ticks(up)),
        columns=tuple(Tick(at=place(step, up[0])[0], label=f"{step:,.0f}") for step in _whole_ticks(across)),
        summary="; ".join(
            f"{one.name} from {one.points[0][1]:.4g} at step {one.points[0][0]} to {one.points[-1][1]:.4g} at step {one.points[-1][0]}"
            for one in shown
        ),
    )


def thin(points: Sequence[tuple[int, float]], most: int = _MOST_POINTS) -> tuple[tuple[int, float], ...]:
    """Return points at even distances, at most about ``most``, the first and the last among them; those not finite are left out."""
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) <= most:
        return tuple(finite)
    stride = math.ceil(len(finite) / (most - 1))
    return (*finite[:-1:stride], finite[-1])


def _room(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _ticks(span: tuple[float, float]) -> list[float]:
    rough = (span[1] - span[0]) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.ceil(span[0] / step)
    return [number * step for number in range(first, math.floor(span[1] / step) + 1)]


def _whole_ticks(span: tuple[int, int]) -> list[int]:
    return sorted({round(tick) for tick in _ticks((float(span[0]), float(span[1])))})
