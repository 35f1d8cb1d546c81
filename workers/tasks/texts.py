"""Texts, and pairs of them, as a classifier reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wegeft.contracts.errors import InvalidData, Problem
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import Message
from workers.base_model import BaseModel
from workers.labelled_rows import LabelledText

_ROWS_AT_ONCE = 256
_PROBLEMS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class TextExample:
    """A row's tokens."""

    tokens: NDArray[np.int32]
    kinds: NDArray[np.int32] | None
    """Which of two texts each token is of, where the model reads that."""


@dataclass(frozen=True, kw_only=True)
class TextInputs:
    """The texts of one split."""

    examples: tuple[TextExample, ...]
    rows: tuple[LabelledText, ...]
    pad_token: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row."""
        return tuple(len(example.tokens) for example in self.examples)

    def __call__(self, rows: Sequence[int], model: Any) -> dict[str, Tensor]:
        """Return the rows side by side, padded on the right."""
        chosen = [self.examples[row] for row in rows]
        tokens = _side_by_side([example.tokens for example in chosen], self.pad_token)
        inputs = {"input_ids": tokens, "attention_mask": _side_by_side([np.ones_like(example.tokens) for example in chosen], 0)}
        kinds = [example.kinds for example in chosen if example.kinds is not None]
        if kinds:
            inputs["token_type_ids"] = _side_by_side(kinds, 0)
        return {name: tensor.to(model.device) for name, tensor in inputs.items()}

    def show(self, row: int) -> str:
        """Return the text, or both of them."""
        said = self.rows[row]
        return said.text if said.pair is None else f"{said.text} | {said.pair}"


def _side_by_side(rows: Sequence[NDArray[np.int32]], padding: int) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.from_numpy(np.stack([np.pad(row, (0, length - len(row)), constant_values=padding) for row in rows]).astype(np.int64))


def text_inputs(spec: JobSpec, base: BaseModel, rows: Sequence[LabelledText], where: str) -> tuple[TextInputs, tuple[Message, ...]]:
    """Return the rows that are kept as tokens, and what to tell of those that were cut or left out.

    Raises ``InvalidData`` for rows over the limit where that is an error, and if no row is left.
    """
    limit = min(spec.sequence_len, longest_text(base))
    found = list(_encode(base.tokenizer, rows, None))
    too_long = [number for number, example in enumerate(found) if len(example.tokens) > limit]
    dropped = frozenset[int]()
    match spec.excess_length_strategy:
        case "error":
            _refuse(too_long, found, where, limit)
        case "drop":
            dropped = frozenset(too_long)
        case "truncate":
            cut = _encode(base.tokenizer, [rows[number] for number in too_long], limit)
            for number, example in zip(too_long, cut, strict=True):
                found[number] = example
    kept = [number for number in range(len(rows)) if number not in dropped]
    if not kept:
        raise InvalidData(f"no row is within {limit} tokens", path=where, hint="give a larger sequence_len, or shorter rows")
    did = "left out, being longer than" if dropped else "cut to"
    text = f"{len(too_long):,} rows of {where} were {did} {limit:,} tokens"
    messages = (Message(level="warning", text=text),) if too_long else ()
    inputs = TextInputs(
        examples=tuple(found[number] for number in kept),
        rows=tuple(rows[number] for number in kept),
        pad_token=base.tokenizer.pad_token_id,
    )
    return inputs, messages


def _encode(tokenizer: Any, rows: Sequence[LabelledText], limit: int | None) -> Iterator[TextExample]:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        texts, pairs = _texts_of(tokenizer, rows[start : start + _ROWS_AT_ONCE])
        cut = {} if limit is None else {"truncation": "longest_first", "max_length": limit}
        encoded = tokenizer(texts, pairs, return_attention_mask=False, verbose=False, **cut)
        kinds = encoded.get("token_type_ids") or [None] * len(texts)
        for tokens, kind in zip(encoded["input_ids"], kinds, strict=True):
            yield TextExample(np.array(tokens, dtype=np.int32), None if kind is None else np.array(kind, dtype=np.int32))


def _texts_of(tokenizer: Any, rows: Sequence[LabelledText]) -> tuple[list[str], list[str] | None]:
    """Return both texts of each row; as one, on two lines, for a tokenizer that has no token to stand between them."""
    if all(row.pair is None for row in rows):
        return [row.text for row in rows], None
    if tokenizer.sep_token is None:
        return [row.text if row.pair is None else f"{row.text}\n{row.pair}" for row in rows], None
    return [row.text for row in rows], [row.pair or "" for row in rows]


def _refuse(too_long: Sequence[int], found: Sequence[TextExample], where: str, limit: int) -> None:
    hint = "excess_length_strategy: truncate or drop"
    problems = [
        Problem(path=f"{where} row {number + 1}", message=f"longer than {limit} tokens", value=str(len(found[number].tokens)), hint=hint)
        for number in too_long[:_PROBLEMS_SHOWN]
    ]
    if problems:
        raise InvalidData(f"{len(too_long)} rows of {where} are longer than {limit} tokens", problems=problems)


def longest_text(base: BaseModel) -> int:
    """Return how many tokens the model can read: as its tokenizer, its configuration and its table of positions say."""
    limits = [int(base.tokenizer.model_max_length)]
    configured = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    limits += [configured] if isinstance(configured, int) and configured > 0 else []
    for name, module in base.model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from behind its padding's.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limits)
