"""Rows as one batch, in whichever of two forms is less work for the model.

*Padded*: rows side by side, padding on the right, where causal attention never looks. *Packed*: rows one after another, what all of
them begin with only once, and a mask by which each row sees that beginning and itself. Rows of a chat often begin with the same system
message, and short ones are little else, so packing can halve a step; the loss and its gradient are the same sums either way.

Packing needs a model that takes positions and a mask as they are given. That is not assumed: both forms are tried on a few rows first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.tokenization import Example

_PACKED_TOKENS_LIMIT = 4096
"""The mask has the square of it as entries."""
_WORTHWHILE = 0.9
"""Share of the padded form's work below which packing is chosen."""
_PROBED_ROWS = 4
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Batch:
    """Rows as a model reads them, and what it is to say."""

    tokens: Tensor
    """rows×length, int64; one row where packed."""
    positions: Tensor
    """Places in the flattened rows×length whose next token is learnt, int64."""
    targets: Tensor
    """The token to say at each position, int64."""
    places: Tensor | None = None
    """Where packed: each token's place in its own row, 1×length, int64."""
    mask: Tensor | None = None
    """Where packed: 1×1×length×length, 0 where attention may look and the least number elsewhere, in the model's dtype."""


@dataclass(frozen=True)
class Layout:
    """How batches are laid out for one model."""

    device: torch.device
    dtype: torch.dtype
    width: int
    """Of the model's hidden states."""
    can_pack: bool
    """Whether the model takes positions and a mask as they are given."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Return the rows as one batch, packed where that is possible and less work."""
        if self.can_pack and is_packing_cheaper(examples, self.width):
            return pack(examples, self.device, self.dtype)
        return pad(examples, self.device)


def find_layout(model: Any, loss: Callable[[Batch], Tensor], examples: Sequence[Example]) -> Layout:
    """Return how to lay out batches for ``model``, whose loss on a batch is ``loss``; it packs only if both forms agree on a few rows."""
    device, dtype = next(model.parameters()).device, model.dtype
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    can_pack = width is not None and _sees_every_row(model, examples) and _agree(model, loss, examples[:_PROBED_ROWS], dtype)
    return Layout(device, dtype, width or 1, can_pack)


def _sees_every_row(model: Any, examples: Sequence[Example]) -> bool:
    """Whether no row is longer than a window of the model's attention, which our mask would open."""
    config = model.config.get_text_config()
    longest = max(len(example.tokens) for example in examples)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return all(window is None or longest <= window for window in windows)


def _agree(model: Any, loss: Callable[[Batch], Tensor], examples: Sequence[Example], dtype: torch.dtype) -> bool:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            side_by_side, packed = loss(pad(examples, device)).item(), loss(pack(examples, device, dtype)).item()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - a model that cannot take our mask says so in its own way
        return False
    finally:
        model.train(was_training)
    return abs(side_by_side - packed) <= _TOLERANCES.get(dtype, _HALF_TOLERANCE) * abs(side_by_side)


def is_packing_cheaper(examples: Sequence[Example], width: int) -> bool:
    """Whether packing is less work: a token costs 24·width² a layer, and a pair of tokens in attention 4·width, halved by causality.

    The mask hides pairs without sparing the work on them.
    """
    lengths = [len(example.tokens) for example in examples]
    prefix = shared_prefix([example.tokens for example in examples])
    packed = sum(lengths) - prefix * (len(lengths) - 1)
    padded, longest = len(lengths) * max(lengths), max(lengths)
    packed_work = packed + packed**2 / (6 * width)
    padded_work = padded + padded * longest / (12 * width)
    return len(lengths) > 1 and packed <= _PACKED_TOKENS_LIMIT and packed_work < _WORTHWHILE * padded_work


def shared_prefix(rows: Sequence[NDArray[np.int32]]) -> int:
    """Return how many tokens all rows begin with alike, at most all but one of the shortest row's."""
    common = min(len(row) for row in rows) - 1
    for row in rows[1:]:
        is_same = rows[0][:common] == row[:common]
        common = common if is_same.all() else int(is_same.argmin())
    return common


def pad(examples: Sequence[Example], device: torch.device) -> Batch:
    """Return the rows side by side."""
    length = max(len(example.tokens) for example in examples)
    # What padding says does not matter, for no position that counts attends to it.
    tokens = np.zeros((len(examples), length), dtype=np.int64)
    is_learnt = np.zeros((len(examples), length), dtype=np.bool_)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = example.tokens
        is_learnt[row, : len(example.tokens)] = example.is_learnt
    learnt = np.flatnonzero(is_learnt)
    return Batch(*(_on(device, array) for array in (tokens, learnt - 1, tokens.reshape(-1)[learnt])))


def pack(examples: Sequence[Example], device: torch.device, dtype: torch.dtype) -> Batch:
    """Return the rows one after another, behind their common beginning."""
    prefix = shared_prefix([example.tokens for example in examples])
    rests = [len(example.tokens) - prefix for example in examples]
    starts = prefix + np.cumsum([0, *rests])[:-1]
    tokens = np.concatenate([examples[0].tokens[:prefix], *(example.tokens[prefix:] for example in examples)]).astype(np.int64)
    places = np.concatenate([np.arange(prefix), *(np.arange(prefix, prefix + rest) for rest in rests)])
    owners = np.repeat(np.arange(len(examples) + 1), [prefix, *rests])
    learnt = [np.flatnonzero(example.is_learnt) for example in examples]
    before = [np.where(at <= prefix, at - 1, start + at - 1 - prefix) for at, start in zip(learnt, starts, strict=True)]
    targets = np.concatenate([example.tokens[at] for example, at in zip(examples, learnt, strict=True)]).astype(np.int64)
    return Batch(
        tokens=_on(device, tokens[None]),
        positions=_on(device, np.concatenate(before)),
        targets=_on(device, targets),
        places=_on(device, places[None]),
        mask=_mask(_on(device, owners), dtype),
    )


def _mask(owners: Tensor, dtype: torch.dtype) -> Tensor:
    """Let each token see what came before it of its own row and of the common beginning, which is number 0."""
    may_see = ((owners[None, :] == 0) | (owners[None, :] == owners[:, None])).tril()
    return torch.zeros(may_see.shape, dtype=dtype, device=owners.device).masked_fill_(~may_see, torch.finfo(dtype).min)[None, None]


def _on(device: torch.device, array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array).to(device)
