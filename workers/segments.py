"""Attention over rows that lie one after another in one sequence, each row by itself: no pair of tokens of two rows is ever computed.

transformers would build a mask of all pairs for such a sequence and compute every one of them. Registered here as an attention of its
own, torch's fused causal attention runs once a row instead, so its cost is that of the rows alone. Where all rows begin alike, that
beginning lies in front once, and every row sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ATTENTION = "wegeft_segments"
"""The name under which transformers knows it."""


@dataclass(frozen=True)
class Segments:
    """Where rows lie in a packed sequence."""

    prefix: int
    """Tokens in front that every row begins with; 0 where there are none."""
    rests: tuple[int, ...]
    """Tokens of each row behind them, at least 1."""

    @property
    def pairs(self) -> int:
        """How many pairs of tokens attention computes, causality aside."""
        return self.prefix**2 + sum(rest * (rest + self.prefix) for rest in self.rests)


def register() -> None:
    """Make the attention known to transformers, where it acts as ``sdpa`` except for batches that bring ``segments``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def unread_mask(device: torch.device) -> Tensor:
    """Return what keeps transformers from making a mask of all pairs: one that is given, and that ``attend`` does not read."""
    return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, segments: Segments | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return the attention's output, batch×length×heads×width: with ``segments``, of each row by itself."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if segments is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return result
    outputs = [sdpa_attention_forward(module, *part, **kwargs)[0] for part in _parts(segments, query, key, value)]
    return torch.cat(outputs, dim=1), None


def _parts(segments: Segments, query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Yield query, key, value and mask of each independent part, split off together so that their gradients are joined, not added."""
    if not segments.prefix:
        apart = (torch.split(x, list(segments.rests), dim=2) for x in (query, key, value))
        yield from zip(*apart, [None] * len(segments.rests), strict=True)
        return
    lengths = [segments.prefix, *segments.rests]
    (query, *queries), (key, *keys), (value, *values) = (torch.split(x, lengths, dim=2) for x in (query, key, value))
    yield query, key, value, None
    for own_query, own_key, own_value in zip(queries, keys, values, strict=True):
        # Causal from the lower right corner, which torch's own flag is not where there are more keys than queries.
        may_see = torch.ones((own_query.shape[2], segments.prefix + own_key.shape[2]), dtype=torch.bool, device=key.device)
        mask = may_see.tril(segments.prefix)[None, None]
        yield own_query, torch.cat([key, own_key], dim=2), torch.cat([value, own_value], dim=2), mask
