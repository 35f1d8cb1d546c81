"""Held-out loss and greedy answers, against the model asked one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_models import make_model, make_tokenizer
from workers import evaluate
from workers.answer_loss import AnswerLoss
from workers.evaluate import Answerer, held_out_score
from workers.layout import find_layout
from workers.rendering import Renderer
from workers.rows import PromptCompletion, Row
from workers.tokenization import Example, Question, Rules, encode, questions_of

NEW_TOKENS = 6
ALIKE: list[Row] = [PromptCompletion("what all of them begin with: " + "ab" * length, "x") for length in range(1, 9)]
ROWS: list[Row] = [PromptCompletion("ab" * length, "xyz"[: 1 + length % 3]) for length in range(1, 12)]


def go_on() -> None:
    """Ask for nothing."""


def questions(rows: list[Row] = ROWS) -> tuple[Question, ...]:
    return questions_of(rows, Renderer(make_tokenizer()), len(rows))


def answer(model: Any, asked: Sequence[Question], check: Callable[[], None] = go_on, *, shares_prefix: bool = False) -> list[str]:
    return Answerer(model, make_tokenizer(), NEW_TOKENS, shares_prefix).answer(asked, check)


def examples() -> tuple[Example, ...]:
    return encode(ROWS, Renderer(make_tokenizer()), Rules(sequence_len=100)).examples


def measure(model: Any) -> float:
    loss = AnswerLoss(model)
    return held_out_score(model, loss, find_layout(model, loss, examples()), examples(), go_on).loss


def greedy_by_hand(model: Any, tokens: list[int]) -> list[int]:
    made: list[int] = []
    with torch.no_grad():
        while len(made) < NEW_TOKENS:
            made.append(int(model(torch.tensor([tokens + made])).logits[0, -1].argmax()))
            if made[-1] == 2:
                break
    return made


@pytest.mark.parametrize("tokens_at_once", [1, 60, 8192])
@pytest.mark.parametrize("shares_prefix", [False, True])
@pytest.mark.parametrize("rows", [ROWS, ALIKE])
def test_answers_in_batches_are_those_of_each_row_alone(
    tokens_at_once: int, shares_prefix: bool, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "_TOKENS_AT_ONCE", tokens_at_once)
    model, tokenizer = make_model(), make_tokenizer()
    answers = answer(model, questions(rows), shares_prefix=shares_prefix)
    for question, text in zip(questions(rows), answers, strict=True):
        made = greedy_by_hand(model, question.tokens.tolist())
        assert text == tokenizer.decode(made, skip_special_tokens=True).strip()


def test_what_a_model_says_of_generation_is_left_aside() -> None:
    model = make_model()
    plain = answer(model, questions())
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.do_sample = True
    model.generation_config.temperature = 50.0
    assert answer(model, questions()) == plain
    assert model.generation_config.repetition_penalty == 9.0


def test_an_answer_ends_at_any_of_the_models_ends() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    (question,) = questions()[:1]
    first, second, *_ = greedy_by_hand(model, question.tokens.tolist())
    model.generation_config.eos_token_id = [2, second]
    (text,) = answer(model, [question])
    assert text == tokenizer.decode([first, second]).strip()


def test_the_loss_is_the_mean_over_all_answer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(initializer_range=0.02)
    total = 0.0
    for example in examples():
        tokens = torch.from_numpy(example.tokens.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(example.is_learnt)[None], tokens, -100)
        with torch.no_grad():
            total += model(input_ids=tokens, labels=labels).loss.item() * example.answer_tokens
    expected = total / sum(example.answer_tokens for example in examples())
    for tokens_at_once in (1, 50, 8192):
        monkeypatch.setattr(evaluate, "_TOKENS_AT_ONCE", tokens_at_once)
        assert measure(model) == pytest.approx(expected, rel=1e-5)


def test_token_accuracy_is_the_share_of_tokens_that_are_the_likeliest() -> None:
    """Each behind the right ones before it; every other row is made to begin with the likeliest."""
    model = make_model(initializer_range=0.02)

    def likeliest(tokens: Any) -> Any:
        with torch.no_grad():
            return model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].argmax(dim=-1).numpy()

    measured = examples()
    right = 0
    for number, example in enumerate(measured):
        learnt = np.flatnonzero(example.is_learnt)
        if number % 2:
            example.tokens[learnt[0]] = likeliest(example.tokens)[learnt[0] - 1]
        right += int((likeliest(example.tokens)[learnt - 1] == example.tokens[learnt]).sum())
    loss = AnswerLoss(model)
    score = held_out_score(model, loss, find_layout(model, loss, measured), measured, go_on)
    total = sum(example.answer_tokens for example in measured)
    assert score.token_accuracy == right / total
    assert 5 <= right < total


def test_measuring_draws_no_random_numbers_and_leaves_the_mode() -> None:
    model = make_model().train()
    before = torch.get_rng_state()
    measure(model)
    answer(model, questions(), shares_prefix=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_measuring_can_be_interrupted() -> None:
    asked: list[None] = []

    def stop_at_fourth() -> None:
        asked.append(None)
        if len(asked) == 4:
            raise KeyboardInterrupt

    model = make_model().train()
    with pytest.raises(KeyboardInterrupt):
        answer(model, questions(), stop_at_fourth)
    assert model.training
    assert model.generation_config.eos_token_id == 2


def test_a_common_beginning_is_read_once() -> None:
    model = make_model()
    read: list[tuple[int, ...]] = []
    with model.model.register_forward_pre_hook(
        lambda _model, _inputs, given: read.append(tuple(given["input_ids"].shape)), with_kwargs=True
    ):
        answer(model, questions(ALIKE), shares_prefix=True)
    # All but the last token of the shortest question, which is what the others begin with.
    prefix = len("what all of them begin with: a")
    assert read[:2] == [(1, prefix), (8, len("b" + "ab" * 7))]
