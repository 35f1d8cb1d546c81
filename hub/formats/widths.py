"""Whether a format's layers are as wide as the base model's, as far as the version's job has told.

The hub has no base model and keeps no configuration of one. But a job measures how large a LoRA of the same layers is, Σ rank·(in + out),
and publishes it with its figures; so the widths of all layers together are known, and a factor of another width shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hub.formats.limits import FactorSize
from wegeft.contracts.errors import Problem

_FLOAT_BYTES = 4
_FIGURE = "lora_equivalent_bytes"


def width_problems(figures: Mapping[str, Any], generators: Iterable[FactorSize], written: Iterable[FactorSize]) -> Iterator[Problem]:
    """Yield that the layers are not those of the base model, where that can be told.

    ``figures``: what the version's job has told; ``generators``: the version's own factors; ``written``: those of the format. Nothing is
    told by uploads, nor where generators have several ranks, as a format's layers then have none that the job's sum is made of.
    """
    told, ranks = figures.get(_FIGURE), {one.rank for one in generators}
    if not isinstance(told, int) or isinstance(told, bool) or len(ranks) != 1:
        return
    [rank] = ranks
    found = sum(one.count // max(one.rank, 1) for one in written)
    if found * rank * _FLOAT_BYTES != told:
        hint = f"{told / _FLOAT_BYTES / max(rank, 1):g}, as the version's job has measured on its base model"
        message = "together, the layers are not as wide as the base model's, in and out"
        yield Problem(path="layers", message=message, value=str(found), hint=hint)
