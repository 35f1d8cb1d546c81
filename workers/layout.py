"""Rows as one batch, in whichever of two forms is less work for the model.

*Padded*: rows side by side, padding on the right, where causal attention never looks. *Packed*: rows one after another, what all of
them begin with only once, and attention by which each row sees that beginning and itself. Rows of a chat often begin with the same
system message, and short ones are little else, so packing can halve a step; the loss and its gradient are the same sums either way.

Packing needs a model whose tokens meet in attention alone, and that takes positions as they are given. That is not assumed: both forms
are tried on a few rows first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wegeft.contracts.errors import InvalidJob
from workers.segments import ATTENTION, Segments, register, unread_mask
from workers.tokenization import Example

MASKED_TOKENS_LIMIT = 4096
"""Of a packed sequence whose rows are kept apart by a mask, which has the square of it as entries."""
_WORTHWHILE = 0.9
"""Share of the padded form's work below which packing is chosen."""
_PROBED_ROWS = 4
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
_HALF_TOLERANCE = 2e-2


class Packing(StrEnum):
    """How the rows of a packed sequence are kept apart in a model's attention."""

    SEGMENTS = "segments"
    """Attention runs once a row; see ``workers.segments``."""
    POSITIONS = "positions"
    """transformers tells the rows by their positions, as it does for flash attention; rows share no beginning."""
    MASK = "mask"
    """A mask of all pairs of tokens, for a model whose attention is its own."""


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
    """Where packed by a mask: 1×1×length×length, 0 where attention may look and the least number elsewhere, in the model's dtype.

    Where packed by segments: a mask that is not read, so that transformers makes none.
    """
    segments: Segments | None = None
    """Where packed by segments."""


@dataclass(frozen=True)
class Layout:
    """How batches are laid out for one model."""

    device: torch.device
    dtype: torch.dtype
    width: int
    """Of the model's hidden states."""
    packing: Packing | None
    """How rows can be packed; None where the model mixes them up."""

    @property
    def can_pack(self) -> bool:
        """Whether the model's tokens meet in attention alone, at positions as they are given."""
        return self.packing is not None

    def __call__(self, examples: Sequence[Example], *, is_packed: bool = False) -> Batch:
        """Return the rows as one batch, packed where that is possible and less work, or wherever it is asked for."""
        if self.packing and (is_packed or is_packing_cheaper(examples, self.width, self.packing)):
            return pack(examples, self.device, self.dtype, self.packing)
        return pad(examples, self.device)

    def require_packing(self, pass_tokens: int) -> None:
        """Raise ``InvalidJob`` where the model cannot pack sequences of up to ``pass_tokens`` tokens."""
        if self.packing is None:
            hint = "leave it out for this base model: rows of similar length are then batched together"
            raise InvalidJob("rows of one sequence would see each other in this base model", path="sample_packing", value=True, hint=hint)
        if self.packing is Packing.MASK and pass_tokens > MASKED_TOKENS_LIMIT:
            message = f"this base model's attention needs a mask of all pairs of tokens, and a pass has up to {pass_tokens:,} tokens"
            hint = f"attn_implementation: sdpa where the model has it, or sequence_len × micro_batch_size of at most {MASKED_TOKENS_LIMIT}"
            raise InvalidJob(message, path="sample_packing", value=True, hint=hint)


def find_layout(model: Any, loss: Callable[[Batch], Tensor], examples: Sequence[Example]) -> Layout:
    """Return how to lay out batches for ``model``, whose loss on a batch is ``loss``; it packs only if both forms agree on a few rows.

    Where that is quicker, the model is left with an attention of ours, which acts as its own on all but packed batches.
    """
    device, dtype = next(model.parameters()).device, model.dtype
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    packing = None
    if width is not None and _sees_every_row(model, examples):
        packing = _find_packing(model, loss, examples[:_PROBED_ROWS])
    return Layout(device, dtype, width or 1, packing)


def _find_packing(model: Any, loss: Callable[[Batch], Tensor], examples: Sequence[Example]) -> Packing | None:
    own = str(getattr(model.config.get_text_config(), "_attn_implementation", None))
    if own.startswith("flash"):
        return Packing.POSITIONS if _agree(model, loss, examples, Packing.POSITIONS) else None
    if own in ("sdpa", ATTENTION):
        register()
        model.set_attn_implementation(ATTENTION)
        if _agree(model, loss, examples, Packing.SEGMENTS):
            return Packing.SEGMENTS
        model.set_attn_implementation("sdpa")
    return Packing.MASK if _agree(model, loss, examples, Packing.MASK) else None


def _sees_every_row(model: Any, examples: Sequence[Example]) -> bool:
    """Whether no row is longer than a window of the model's attention, which our mask would open."""
    config = model.config.get_text_config()
    longest = max(len(example.tokens) for example in examples)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return all(window is None or longest <= window for window in windows)


def _agree(model: Any, loss: Callable[[Batch], Tensor], examples: Sequence[Example], packing: Packing) -> bool:
    device, dtype = next(model.parameters()).device, model.dtype
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            side_by_side, packed = loss(pad(examples, device)).item(), loss(pack(examples, device, dtype, packing)).item()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - a model that cannot take such a batch says so in its own way
        return False
    finally:
        model.train(was_training)
    return abs(side_by_side - packed) <= _TOLERANCES.get(dtype, _HALF_TOLERANCE) * abs(side_by_side)


def is_packing_cheaper(examples: Sequence[Example], width: int, packing: Packing = Packing.MASK) -> bool:
    """Whether packing is less work: a token costs 24·width² a layer, and a pair of tokens in attention 4·width, halved by causality.

    A mask hides pairs without sparing the work on them.
    """
    lengths = [len(example.tokens) for example in examples]
    segments = _segments_of(examples, packing)
    packed = segments.prefix + sum(segments.rests)
    padded, longest = len(lengths) * max(lengths), max(lengths)
    if packing is Packing.MASK:
        is_possible, packed_work = packed <= MASKED_TOKENS_LIMIT, packed + packed**2 / (6 * width)
    else:
        is_possible, packed_work = True, packed + segments.pairs / (12 * width)
    padded_work = padded + padded * longest / (12 * width)
    return len(lengths) > 1 and is_possible and packed_work < _WORTHWHILE * padded_work


def _segments_of(examples: Sequence[Example], packing: Packing) -> Segments:
    is_shared = len(examples) > 1 and packing is not Packing.POSITIONS
    prefix = shared_prefix([example.tokens for example in examples]) if is_shared else 0
    return Segments(prefix, tuple(len(example.tokens) - prefix for example in examples))


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
    targets = tokens.reshape(-1)[learnt]
    return Batch(tokens=_on(device, tokens), positions=_on(device, learnt - 1), targets=_on(device, targets))


def pack(examples: Sequence[Example], device: torch.device, dtype: torch.dtype, packing: Packing = Packing.MASK) -> Batch:
    """Return the rows one after another, behind their common beginning."""
    segments = _segments_of(examples, packing)
    prefix, rests = segments.prefix, segments.rests
    starts = prefix + np.cumsum([0, *rests])[:-1]
    tokens = np.concatenate([examples[0].tokens[:prefix], *(example.tokens[prefix:] for example in examples)]).astype(np.int64)
    places = np.concatenate([np.arange(prefix), *(np.arange(prefix, prefix + rest) for rest in rests)])
    learnt = [np.flatnonzero(example.is_learnt) for example in examples]
    before = [np.where(at <= prefix, at - 1, start + at - 1 - prefix) for at, start in zip(learnt, starts, strict=True)]
    targets = np.concatenate([example.tokens[at] for example, at in zip(examples, learnt, strict=True)]).astype(np.int64)
    return Batch(
        tokens=_on(device, tokens[None]),
        positions=_on(device, np.concatenate(before)),
        targets=_on(device, targets),
        places=_on(device, places[None]),
        mask=_mask_of(segments, device, dtype, packing),
        segments=segments if packing is Packing.SEGMENTS else None,
    )


def _mask_of(segments: Segments, device: torch.device, dtype: torch.dtype, packing: Packing) -> Tensor | None:
    match packing:
        case Packing.SEGMENTS:
            return unread_mask(device)
        case Packing.POSITIONS:
            return None
        case Packing.MASK:
            owners = np.repeat(np.arange(len(segments.rests) + 1), [segments.prefix, *segments.rests])
            return _mask(_on(device, owners), dtype)
        case _:
            assert_never(packing)


def _mask(owners: Tensor, dtype: torch.dtype) -> Tensor:
    """Let each token see what came before it of its own row and of the common beginning, which is number 0."""
    may_see = ((owners[None, :] == 0) | (owners[None, :] == owners[:, None])).tril()
    return torch.zeros(may_see.shape, dtype=dtype, device=owners.device).masked_fill_(~may_see, torch.finfo(dtype).min)[None, None]


def _on(device: torch.device, array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array).to(device)
