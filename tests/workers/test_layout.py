"""Padded and packed rows: the same loss and gradient, by hand and on models of several kinds; and no packing where a model cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_models import make_model
from workers.answer_loss import AnswerLoss
from workers.layout import Batch, find_layout, is_packing_cheaper, pack, pad, shared_prefix
from workers.tokenization import Example

CPU = torch.device("cpu")
PREFIX = [1, 9, 8, 7, 6, 5]


def example(tokens: list[int], learnt: list[int]) -> Example:
    is_learnt = np.zeros(len(tokens), np.bool_)
    is_learnt[learnt] = True
    return Example(np.array(tokens, np.int32), is_learnt)


def chat_like(count: int = 5, seed: int = 0) -> list[Example]:
    """Return rows that begin alike and end in one to three learnt tokens."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        rest = random.integers(10, 300, random.integers(2, 9)).tolist()
        length = len(PREFIX) + len(rest)
        rows.append(example([*PREFIX, *rest], list(range(length - random.integers(1, min(4, length)), length))))
    return rows


def test_padding_is_on_the_right_and_targets_follow_their_positions() -> None:
    batch = pad([example([5, 6, 7], [2]), example([1, 2, 3, 4], [1, 3])], CPU)
    assert batch.tokens.tolist() == [[5, 6, 7, 0], [1, 2, 3, 4]]
    assert batch.targets.tolist() == [7, 2, 4]
    assert batch.tokens.flatten()[batch.positions].tolist() == [6, 1, 3]
    assert batch.mask is batch.places is None


def test_packing_by_hand() -> None:
    batch = pack([example([1, 2, 3, 4], [1, 2, 3]), example([1, 2, 5], [2])], CPU, torch.float32)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5]]
    assert batch.places is not None
    assert batch.places.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.positions.tolist() == [0, 1, 2, 1]
    assert batch.targets.tolist() == [2, 3, 4, 5]
    assert batch.mask is not None
    assert (batch.mask[0, 0] == 0).int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=8), min_size=1, max_size=5))
def test_a_shared_prefix_is_the_longest_one(rows: list[list[int]]) -> None:
    examples = [example(row, [1]) for row in rows]
    common = shared_prefix([row.tokens for row in examples])
    shortest = min(len(row) for row in rows)
    assert len({tuple(row[:common]) for row in rows}) == 1
    assert common == shortest - 1 or len({tuple(row[: common + 1]) for row in rows}) > 1


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=9), min_size=1, max_size=6), st.data())
def test_packing_loses_no_token_and_no_answer(rows: list[list[int]], data: st.DataObject) -> None:
    learnt = [sorted(data.draw(st.sets(st.integers(1, len(row) - 1), min_size=1))) for row in rows]
    examples = [example(row, at) for row, at in zip(rows, learnt, strict=True)]
    batch = pack(examples, CPU, torch.float32)
    assert batch.places is not None
    assert batch.mask is not None
    answers = iter(zip(batch.positions.tolist(), batch.targets.tolist(), strict=True))
    for row, at in zip(rows, learnt, strict=True):
        for place in at:
            position, target = next(answers)
            seen = (batch.mask[0, 0, position] == 0).nonzero().flatten()
            assert batch.tokens[0, seen].tolist() == row[:place]
            assert batch.places[0, seen].tolist() == list(range(place))
            assert target == row[place]
    assert next(answers, None) is None


def other_model(name: str) -> Any:
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"intermediate_size": 64, "num_key_value_heads": 2}),
        "gemma2": (
            transformers.Gemma2Config,
            transformers.Gemma2ForCausalLM,
            {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
        ),
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, {}),
        "bloom": (transformers.BloomConfig, transformers.BloomForCausalLM, {}),
        "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM, {}),
    }
    config, model, more = kinds[name]
    torch.manual_seed(0)
    return model(config(**sizes, initializer_range=0.3, **more)).eval()


@pytest.mark.parametrize(
    ("name", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("qwen2", "sdpa"), ("gpt2", "sdpa"), ("gpt2", "eager"), ("gemma2", "eager")],
)
def test_packed_rows_have_the_loss_and_gradient_of_padded_ones(name: str, attention: str) -> None:
    model = make_model() if name == "llama" else other_model(name)
    model.set_attn_implementation(attention)
    model.get_output_embeddings().weight.requires_grad_(requires_grad=False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = AnswerLoss(model)
    for rows in (chat_like(), [*chat_like(3, seed=1), example([300, 301, 302], [1, 2])]):
        sums = [loss(batch) for batch in (pad(rows, CPU), pack(rows, CPU, torch.float32))]
        torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-4)
        padded, packed = (torch.autograd.grad(total, learning, allow_unused=True) for total in sums)
        for one, two in zip(padded, packed, strict=True):
            assert (one is None) == (two is None)
            if one is not None and two is not None:
                torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3 * one.abs().max().item())


def is_packed(batch: Batch) -> bool:
    return batch.mask is not None


@pytest.mark.parametrize(("name", "can"), [("llama", True), ("qwen2", True), ("gpt2", True), ("bloom", False), ("mamba", False)])
def test_packing_is_used_only_where_the_model_can(name: str, can: bool) -> None:
    model = make_model() if name == "llama" else other_model(name)
    layout = find_layout(model, AnswerLoss(model), chat_like())
    assert is_packed(layout(chat_like())) is can


@pytest.mark.parametrize(("window", "can"), [(8, False), (100, True)])
def test_rows_longer_than_an_attention_window_are_padded(window: int, can: bool) -> None:
    model = make_model()
    model.config.sliding_window = window
    layout = find_layout(model, AnswerLoss(model), chat_like())
    assert is_packed(layout(chat_like())) is can


def test_the_cheaper_form_is_chosen() -> None:
    alike = [example([*range(1, 40), 50 + n], [39]) for n in range(8)]
    unlike = [example([60 + n, *range(1, 40)], [39]) for n in range(8)]
    ragged = [example([60 + n, *range(1, 10 + 30 * (n == 7))], [1]) for n in range(8)]
    assert is_packing_cheaper(alike, 576)
    assert not is_packing_cheaper(unlike, 576)
    assert is_packing_cheaper(ragged, 576)
    assert not is_packing_cheaper(alike[:1], 576)
    long = [example([*range(1, 600), 1000 + n], [599]) for n in range(3)] + [example([2000 + n] * 4090, [1]) for n in range(2)]
    assert not is_packing_cheaper(long, 4096)


def test_a_mode_is_left_as_it_was() -> None:
    model = make_model().train()
    find_layout(model, AnswerLoss(model), chat_like())
    assert model.training
