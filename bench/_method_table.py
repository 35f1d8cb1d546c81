"""What ``bench.methods`` prints: the table, the fronts, and a plot."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OURS = "wegeft"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method's figures."""

    label: str
    learning_rate: float
    seeds: int
    loss: float
    """Held out; mean over the seeds."""
    spread: float | None
    """Standard deviation over the seeds; None for one."""
    costs: Mapping[str, float]


def front(rows: Sequence[Row], cost: str) -> list[Row]:
    """Return the rows that no other beats in both loss and cost, from the cheapest on; of equals, all."""
    return sorted((row for row in rows if not beaten_by(row, rows, cost)), key=lambda row: row.costs[cost])


def beaten_by(row: Row, rows: Sequence[Row], cost: str) -> list[Row]:
    """Return the rows that are nowhere worse than ``row`` and somewhere better."""
    point = (row.loss, row.costs[cost])
    others = ((other, (other.loss, other.costs[cost])) for other in rows)
    return [other for other, at in others if at[0] <= point[0] and at[1] <= point[1] and at != point]


def show_table(rows: Sequence[Row], costs: Mapping[str, str]) -> str:
    """Return the table in Markdown; a star marks a cost on whose front the method is."""
    fronts = {cost: {row.label for row in front(rows, cost)} for cost in costs}
    lines = [f"| method | rate | held-out loss | {' | '.join(costs.values())} |", f"|---|---:|---:|{'---:|' * len(costs)}"]
    for row in rows:
        cells = [f"{_number(row.costs[cost])}{' *' if row.label in fronts[cost] else ''}" for cost in costs]
        spread = "" if row.spread is None else f" ± {row.spread:.3f}"
        lines.append(f"| {row.label} | {row.learning_rate:g} | {row.loss:.3f}{spread} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "A star: on the front of held-out loss against this cost."])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"


def describe_fronts(rows: Sequence[Row], costs: Mapping[str, str]) -> list[str]:
    """Return, for each cost, whether WeGeFT is on the front, and who beats it where it is not."""
    ours = [row for row in rows if row.label.partition(":")[0] == OURS]
    return [_describe(ours, rows, cost, name) for cost, name in costs.items()]


def _describe(ours: Sequence[Row], rows: Sequence[Row], cost: str, name: str) -> str:
    labels = {row.label for row in front(rows, cost)}
    there = [row.label for row in ours if row.label in labels]
    if there:
        return f"loss against {name}: {', '.join(there)} on the front"
    if not ours:
        return f"loss against {name}: WeGeFT was not run"
    best = min(ours, key=lambda row: row.loss)
    rivals = ", ".join(other.label for other in beaten_by(best, rows, cost))
    return f"loss against {name}: WeGeFT is NOT on the front; {best.label} is beaten by {rivals}"


def show_plot(rows: Sequence[Row]) -> str:
    """Return loss against trained numbers, on a logarithmic axis, drawn in characters."""
    import plotext

    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plot_size(130, 36)
    powers = range(math.floor(math.log10(min(_numbers(rows)))), math.ceil(math.log10(max(_numbers(rows)))) + 2)
    plotext.xlim(powers[0], powers[-1])
    plotext.xticks(list(powers), [f"1e{power}" for power in powers])
    losses = [row.loss for row in rows]
    margin = 0.05 * (max(losses) - min(losses)) or 0.1
    plotext.ylim(min(losses) - margin, max(losses) + margin)
    for name, marker, shown in _parts(rows):
        plotext.scatter([math.log10(number) for number in _numbers(shown)], [row.loss for row in shown], marker=marker, label=name)
    best = front(rows, "trainable")
    for row in rows:
        plotext.text(f"{'o' if row in best else 'x'} {row.label}", math.log10(row.costs["trainable"]), row.loss, alignment="left")
    plotext.title("held-out loss against trained numbers")
    return str(plotext.uncolorize(plotext.build()))


def _numbers(rows: Sequence[Row]) -> list[float]:
    return [row.costs["trainable"] for row in rows]


def write_picture(rows: Sequence[Row], path: Path) -> bool:
    """Draw the same into a file; False where matplotlib is not installed."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return False
    figure, axes = plt.subplots(figsize=(10, 6))
    for name, marker, shown in _parts(rows):
        axes.scatter([row.costs["trainable"] for row in shown], [row.loss for row in shown], marker=marker, label=name)
    best = front(rows, "trainable")
    axes.step([row.costs["trainable"] for row in best], [row.loss for row in best], where="post", linewidth=0.8)
    for row in rows:
        axes.annotate(row.label, (row.costs["trainable"], row.loss), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xscale="log", xlabel="trained numbers", ylabel="held-out loss")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return True


def _parts(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    labels = {row.label for row in front(rows, "trainable")}
    parts = [
        ("on the front", "o", [row for row in rows if row.label in labels]),
        ("not on it", "x", [row for row in rows if row.label not in labels]),
    ]
    return [part for part in parts if part[2]]
