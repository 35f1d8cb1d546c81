"""How well a model does on rows that it does not train on: their loss, and its own answers beside the expected ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.answer_loss import AnswerLoss
from workers.batches import batches_within
from workers.layout import Layout, shared_prefix
from workers.tokenization import Example, Question

_TOKENS_AT_ONCE = 8192
"""Of one batch, padding included."""
_SHORTEST_PREFIX = 4
"""Tokens, below which reading a common beginning once is not worth a pass of its own."""


def held_out_loss(model: Any, loss: AnswerLoss, layout: Layout, examples: Sequence[Example], check: Callable[[], None]) -> float:
    """Return the mean over the answer tokens of ``examples`` of −log p(token), in nats; ``check`` runs between batches, and may raise."""
    total = 0.0
    with _evaluating(model):
        for rows in batches_within([len(example.tokens) for example in examples], _TOKENS_AT_ONCE):
            check()
            total += loss(layout([examples[row] for row in rows])).item()
    return total / sum(example.answer_tokens for example in examples)


@dataclass(frozen=True)
class Answerer:
    """A model that answers with the likeliest token at each place, up to its end or ``max_new_tokens``.

    Nothing else steers the choice: penalties and sampling in the model's own generation settings are left aside. White space around an
    answer is removed.
    """

    model: Any
    tokenizer: Any
    max_new_tokens: int
    shares_prefix: bool
    """Whether what all questions of a batch begin with may be read once for all of them; see ``Layout.can_pack``."""

    def answer(self, questions: Sequence[Question], check: Callable[[], None]) -> list[str]:
        """Return the answer to each question; ``check`` runs between tokens, and may raise."""
        answers = [""] * len(questions)
        with _evaluating(self.model), self._greedy():
            lengths = [len(question.tokens) + self.max_new_tokens for question in questions]
            for rows in batches_within(lengths, _TOKENS_AT_ONCE):
                texts = self._answer_batch([questions[row].tokens for row in rows], check)
                for row, text in zip(rows, texts, strict=True):
                    answers[row] = text
        return answers

    @contextmanager
    def _greedy(self) -> Iterator[None]:
        """Put plain greedy settings in place of the model's own, which ``generate`` would fill in."""
        from transformers import GenerationConfig

        inner = _inner(self.model)
        own = inner.generation_config
        ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        inner.generation_config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted({end for end in [*ends, self.tokenizer.eos_token_id] if end is not None}),
            pad_token_id=self._pad_token,
        )
        try:
            yield
        finally:
            inner.generation_config = own

    @property
    def _pad_token(self) -> int:
        pad: int | None = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def _answer_batch(self, questions: Sequence[NDArray[np.int32]], check: Callable[[], None]) -> list[str]:
        def go_on(tokens: Tensor, _scores: Tensor) -> Tensor:
            check()
            return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

        check()
        prefix = shared_prefix(questions) if self.shares_prefix and len(questions) > 1 else 0
        given = {"past_key_values": self._read(questions[0][:prefix], len(questions))} if prefix >= _SHORTEST_PREFIX else {}
        tokens, mask = self._side_by_side(questions, prefix if given else 0)
        made = self.model.generate(input_ids=tokens, attention_mask=mask, stopping_criteria=[go_on], **given)
        texts: list[str] = self.tokenizer.batch_decode(made[:, tokens.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _side_by_side(self, questions: Sequence[NDArray[np.int32]], prefix: int) -> tuple[Tensor, Tensor]:
        """Return tokens and mask, rows×length, with padding on the left, but behind the common beginning."""
        length = max(len(question) for question in questions)
        tokens = torch.full((len(questions), length), self._pad_token, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for row, question in enumerate(questions):
            rest = length - len(question) + prefix
            tokens[row, :prefix], mask[row, :prefix] = torch.from_numpy(question[:prefix]), 1
            tokens[row, rest:], mask[row, rest:] = torch.from_numpy(question[prefix:]), 1
        device = next(self.model.parameters()).device
        return tokens.to(device), mask.to(device)

    def _read(self, prefix: NDArray[np.int32], rows: int) -> Any:
        """Return what the model remembers of ``prefix``, for each of ``rows``."""
        device = next(self.model.parameters()).device
        head = _inner(self.model).get_output_embeddings()
        # No logits are wanted; those of one token are the least that a model makes.
        with head.register_forward_pre_hook(lambda _head, inputs: (inputs[0][:, -1:], *inputs[1:])) if head else nullcontext():
            memory = self.model(input_ids=torch.from_numpy(prefix.astype(np.int64))[None].to(device), use_cache=True).past_key_values
        memory.batch_repeat_interleave(rows)
        return memory


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def exact_share(answers: Sequence[str], questions: Sequence[Question]) -> float:
    """Return the share of answers that equal the expected ones, white space around both removed."""
    return sum(given.strip() == question.expected.strip() for given, question in zip(answers, questions, strict=True)) / len(questions)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
