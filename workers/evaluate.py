"""How well a model does on rows that it does not train on: their loss, and its own answers beside the expected ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from workers.answer_loss import AnswerLoss
from workers.batches import batches_within
from workers.layout import Layout
from workers.tokenization import Example, Question

_TOKENS_AT_ONCE = 8192
"""Of one batch, padding included."""


def held_out_loss(model: Any, loss: AnswerLoss, layout: Layout, examples: Sequence[Example], check: Callable[[], None]) -> float:
    """Return the mean over the answer tokens of ``examples`` of −log p(token), in nats; ``check`` runs between batches, and may raise."""
    total = 0.0
    with _evaluating(model):
        for rows in batches_within([len(example.tokens) for example in examples], _TOKENS_AT_ONCE):
            check()
            total += loss(layout([examples[row] for row in rows])).item()
    return total / sum(example.answer_tokens for example in examples)


def answer(model: Any, tokenizer: Any, questions: Sequence[Question], max_new_tokens: int, check: Callable[[], None]) -> list[str]:
    """Return the model's answer to each question: the likeliest token at each place, up to its end or ``max_new_tokens``.

    Nothing else steers the choice: penalties and sampling in the model's own generation settings are left aside. White space around an
    answer is removed. ``check`` runs between tokens, and may raise.
    """
    answers = [""] * len(questions)
    with _evaluating(model), _greedy(model, tokenizer, max_new_tokens):
        lengths = [len(question.tokens) + max_new_tokens for question in questions]
        for rows in batches_within(lengths, _TOKENS_AT_ONCE):
            texts = _answer_batch(model, tokenizer, [questions[row] for row in rows], check)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
    return answers


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


@contextmanager
def _greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> Iterator[None]:
    """Put plain greedy settings in place of the model's own, which ``generate`` would fill in."""
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = inner.generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    inner.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted({end for end in [*ends, tokenizer.eos_token_id] if end is not None}),
        pad_token_id=_pad_token(tokenizer),
    )
    try:
        yield
    finally:
        inner.generation_config = own


def _pad_token(tokenizer: Any) -> int:
    pad: int | None = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad


def _answer_batch(model: Any, tokenizer: Any, questions: Sequence[Question], check: Callable[[], None]) -> list[str]:
    def go_on(tokens: Tensor, _scores: Tensor) -> Tensor:
        check()
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    check()
    length = max(len(question.tokens) for question in questions)
    tokens = torch.full((len(questions), length), _pad_token(tokenizer), dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, question in enumerate(questions):
        tokens[row, length - len(question.tokens) :] = torch.from_numpy(question.tokens)
        mask[row, length - len(question.tokens) :] = 1
    device = next(model.parameters()).device
    made = model.generate(input_ids=tokens.to(device), attention_mask=mask.to(device), stopping_criteria=[go_on])
    return [text.strip() for text in tokenizer.batch_decode(made[:, length:], skip_special_tokens=True)]
