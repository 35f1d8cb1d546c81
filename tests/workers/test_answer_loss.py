"""The loss at answers only is the loss that the model's own logits give, its gradient too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny_models import make_model
from workers import answer_loss
from workers.answer_loss import AnswerLoss
from workers.layout import Batch, pad
from workers.tokenization import Example


def batch_of(lengths: tuple[int, ...] = (9, 5, 12), seed: int = 0) -> tuple[list[Example], Batch]:
    random = np.random.default_rng(seed)
    examples = []
    for length in lengths:
        is_learnt = random.random(length) < 0.5
        is_learnt[0], is_learnt[-1] = False, True
        examples.append(Example(random.integers(3, 300, length).astype(np.int32), is_learnt))
    return examples, pad(examples, torch.device("cpu"))


def own_loss(model: Any, examples: list[Example]) -> Tensor:
    """Return the sum of cross-entropies from the model's own loss, row by row, without padding."""
    total = torch.zeros(())
    for example in examples:
        tokens = torch.from_numpy(example.tokens.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(example.is_learnt)[None], tokens, -100)
        total = total + model(input_ids=tokens, labels=labels, num_items_in_batch=1).loss
    return total


def capped(**options: Any) -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        **options,
    )
    torch.manual_seed(0)
    return Gemma2ForCausalLM(config).eval()


def scaled() -> Any:
    from transformers import CohereConfig, CohereForCausalLM

    config = CohereConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, logit_scale=0.0625, pad_token_id=0
    )
    torch.manual_seed(0)
    return CohereForCausalLM(config).eval()


MODELS = {
    "plain": lambda: make_model(initializer_range=0.02),
    "capped": lambda: capped(final_logit_softcapping=5.0),
    "uncapped": lambda: capped(final_logit_softcapping=None),
    "scaled": scaled,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1 << 25, 3 * 320, 1])
def test_loss_and_gradient_are_the_models_own(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_loss, "_LOGITS_AT_ONCE", chunk)
    model = MODELS[name]()
    head = model.get_output_embeddings().weight
    head.requires_grad_(requires_grad=False)
    learning = [p for p in model.parameters() if p.requires_grad]
    examples, batch = batch_of()
    ours, theirs = AnswerLoss(model)(batch), own_loss(model, examples)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, own in zip(torch.autograd.grad(3 * ours, learning), torch.autograd.grad(3 * theirs, learning), strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1 << 25, 320])
def test_judging_finds_the_same_loss_and_the_likeliest_tokens(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_loss, "_LOGITS_AT_ONCE", chunk)
    model = MODELS[name]()
    _, batch = batch_of()
    with torch.no_grad():
        logits = model(batch.tokens).logits.flatten(0, 1)[batch.positions]
    likeliest = replace(batch, targets=torch.where(torch.arange(len(batch.targets)) % 2 == 0, logits.argmax(dim=-1), batch.targets))
    judged = AnswerLoss(model).judge(likeliest)
    assert judged.loss == pytest.approx(AnswerLoss(model)(likeliest).item(), rel=1e-5)
    assert judged.right == int((logits.argmax(dim=-1) == likeliest.targets).sum()) >= len(batch.targets) // 2


@pytest.mark.parametrize(("name", "is_plain"), [("plain", True), ("capped", False), ("uncapped", True), ("scaled", False)])
def test_the_probe_tells_models_that_do_more_than_their_head(name: str, is_plain: bool) -> None:
    assert AnswerLoss(MODELS[name]())._is_plain is is_plain


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_bare_head_is_as_exact_as_the_textbook_even_for_hopeless_tokens(dtype: torch.dtype, tolerance: float, has_bias: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=has_bias, dtype=dtype).requires_grad_(requires_grad=False)
    hidden = (200 * torch.randn(12, 16)).to(dtype)
    targets = torch.randint(0, 50, (12,))
    exact = hidden.double().requires_grad_()
    logits = torch.nn.functional.linear(exact, head.weight.double(), head.bias.double() if has_bias else None)
    wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert wanted > 12 * 104, "no float32 softmax holds these probabilities"
    (slope,) = torch.autograd.grad(wanted, exact)
    loss, gradient = answer_loss._bare_gradient(hidden, targets, head)
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), wanted, rtol=tolerance, atol=0.0)
    torch.testing.assert_close(gradient.double(), slope, rtol=tolerance, atol=10 * tolerance)


def test_a_hook_on_the_head_sees_its_calls() -> None:
    model = make_model()
    head = model.get_output_embeddings()
    head.weight.requires_grad_(requires_grad=False)
    calls: list[int] = []
    _, batch = batch_of()
    bare = AnswerLoss(model)(batch)
    with head.register_forward_hook(lambda *_: calls.append(1)):
        loss = AnswerLoss(model)
        calls.clear()
        hooked = loss(batch)
    assert len(calls) == 2, "once on one token, once on the learnt ones"
    torch.testing.assert_close(hooked, bare, rtol=1e-6, atol=1e-6)


def test_a_head_that_learns_gets_its_gradient() -> None:
    model = make_model()
    examples, batch = batch_of()
    head = model.get_output_embeddings().weight
    (ours,) = torch.autograd.grad(AnswerLoss(model)(batch), head)
    (theirs,) = torch.autograd.grad(own_loss(model, examples), head)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_gradients_none_are_made() -> None:
    model = make_model()
    examples, batch = batch_of()
    with torch.no_grad():
        loss = AnswerLoss(model)(batch)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, own_loss(model, examples), rtol=1e-5, atol=1e-5)


def test_the_head_runs_on_learnt_tokens_only() -> None:
    model = make_model()
    model.get_output_embeddings().weight.requires_grad_(requires_grad=False)
    loss = AnswerLoss(model)
    _, batch = batch_of()
    rows: list[int] = []
    with model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, output: rows.append(output.flatten(0, -2).shape[0])):
        loss(batch)
    assert sum(rows) == len(batch.targets) + 1


def test_a_model_without_a_head_module_is_run_whole() -> None:
    model = make_model()
    examples, batch = batch_of()
    loss = AnswerLoss(model)
    loss._head = None
    torch.testing.assert_close(loss(batch), own_loss(model, examples), rtol=1e-5, atol=1e-5)


def test_bfloat16_sums_in_float32() -> None:
    model = make_model().to(torch.bfloat16)
    model.get_output_embeddings().weight.requires_grad_(requires_grad=False)
    _, batch = batch_of()
    loss = AnswerLoss(model)(batch)
    assert loss.dtype == torch.float32
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
