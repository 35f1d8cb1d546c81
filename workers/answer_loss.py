"""Cross-entropy of the answers only: the language-model head runs where a token is learnt, and nowhere else.

With T tokens of which n are learnt, and a vocabulary of V, logits cost n·V instead of T·V in time and memory, and no more than
``_LOGITS_AT_ONCE`` of them exist at once. The sum is that of the model's own logits: a probe at the start compares them, and a model
that does more than apply its head (soft-capped or scaled logits) is run in a way that keeps what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.layout import Batch

Model = Any
"""A causal language model of transformers, adapted or not; both are untyped."""

_LOGITS_AT_ONCE = 1 << 25
"""Numbers, 128 MiB in float32; a piece as large as that still multiplies at the processor's full rate."""
_PROBE_TOKENS = 8
_PROBE_LOGIT = 1000.0
"""Size of logits in the probe, at which soft-capping cannot hide."""


@dataclass(frozen=True)
class Judgement:
    """How a model does on the learnt tokens of a batch."""

    loss: float
    """Sum of −log p(token), in nats."""
    right: int
    """Tokens that the model finds the likeliest at their places."""


class AnswerLoss:
    """Sums the cross-entropy of a batch's answers; make one for each model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._head: nn.Module | None = self._model.get_output_embeddings()
        with torch.no_grad():
            self._is_plain = self._head is not None and self._head_is_all(self._head)
        self._head_learns = self._head is not None and any(p.requires_grad for p in self._head.parameters())

    def __call__(self, batch: Batch) -> Tensor:
        """Return the sum over the batch's learnt tokens of −log p(token), in nats, float32."""
        if self._head is None:
            logits = self._run(batch).flatten(0, 1).index_select(0, batch.positions)
            return _cross_entropy(logits, batch.targets)
        if not self._is_plain:
            logits = self._logits_at(self._head, batch)
            return _cross_entropy(logits, batch.targets)
        hidden = self._hidden_at(self._head, batch)
        if torch.is_grad_enabled() and self._head_learns:
            return _cross_entropy(self._head(hidden), batch.targets)
        total: Tensor = _ChunkedCrossEntropy.apply(hidden, batch.targets, self._head, _is_bare(self._head))  # type: ignore[no-untyped-call]
        return total

    def judge(self, batch: Batch) -> Judgement:
        """Return the sum, and how many learnt tokens are the likeliest ones; no gradient is kept."""
        total, right = 0.0, 0
        with torch.no_grad():
            for logits, targets in self._pieces(batch):
                total += _cross_entropy(logits, targets).item()
                right += int((logits.argmax(dim=-1) == targets).sum().item())
        return Judgement(total, right)

    def _pieces(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the logits at the learnt positions with their targets, a bounded number at once where the head is plain."""
        if self._head is None:
            yield self._run(batch).flatten(0, 1).index_select(0, batch.positions), batch.targets
        elif not self._is_plain:
            yield self._logits_at(self._head, batch), batch.targets
        else:
            hidden = self._hidden_at(self._head, batch)
            rows = max(1, _LOGITS_AT_ONCE // _vocabulary(self._head, hidden))
            for start in range(0, len(hidden), rows):
                yield self._head(hidden[start : start + rows]), batch.targets[start : start + rows]

    def _run(self, batch: Batch) -> Tensor:
        # Padded rows need no mask: padding is on the right, and a position never attends to what follows it.
        given: dict[str, Any] = {} if batch.places is None else {"attention_mask": batch.mask, "position_ids": batch.places}
        given |= {} if batch.segments is None else {"segments": batch.segments}
        logits: Tensor = self._model(input_ids=batch.tokens, use_cache=False, return_dict=True, **given).logits
        return logits

    def _hidden_at(self, head: nn.Module, batch: Batch) -> Tensor:
        """Run all but the head and return what it would read at the learnt positions; it runs once, for nothing, on one token."""
        kept: list[Tensor] = []

        def keep(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            kept.append(inputs[0].flatten(0, 1).index_select(0, batch.positions))
            return (inputs[0][:1, :1].detach(), *inputs[1:])

        with head.register_forward_pre_hook(keep):
            self._run(batch)
        return kept[0]

    def _logits_at(self, head: nn.Module, batch: Batch) -> Tensor:
        """Run the whole model with a head that sees the learnt positions only, as one row."""

        def select(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0].flatten(0, 1).index_select(0, batch.positions)[None], *inputs[1:])

        with head.register_forward_pre_hook(select):
            return self._run(batch)[0]

    def _head_is_all(self, head: nn.Module) -> bool:
        """Whether logits are what the head makes of its input and nothing else, tried on small and on very large ones."""
        device = next(self._model.parameters()).device
        tokens = torch.arange(_PROBE_TOKENS, device=device)
        batch = Batch(tokens=tokens[None], positions=tokens, targets=tokens)
        read: list[Tensor] = []
        factor = torch.ones(())

        def scale(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            read.append(inputs[0] * factor.to(inputs[0]))
            return (read[-1], *inputs[1:])

        with head.register_forward_pre_hook(scale):
            own = self._run(batch)
            factor = _PROBE_LOGIT / own.abs().max().clamp_min(1e-6)
            own_large = self._run(batch)
        return len(read) == 2 and all(
            torch.allclose(logits.float(), head(hidden).float(), rtol=1e-3) for logits, hidden in zip((own, own_large), read, strict=True)
        )


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of cross-entropies; its gradient is made with it, chunk by chunk, so that no logits outlive their chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Module, is_bare: bool) -> Tensor:
        rows = max(1, _LOGITS_AT_ONCE // _vocabulary(head, hidden))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradients: list[Tensor] = []
        for start in range(0, len(targets), rows):
            part, wanted = hidden[start : start + rows].detach(), targets[start : start + rows]
            if not ctx.needs_input_grad[0]:
                total += _cross_entropy(head(part), wanted)
                continue
            loss, gradient = (_bare_gradient if is_bare else _head_gradient)(part, wanted, head)
            gradients.append(gradient)
            total += loss
        ctx.save_for_backward(torch.cat(gradients) if gradients else torch.zeros_like(hidden))
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient), None, None, None


def _head_gradient(hidden: Tensor, targets: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the sum of cross-entropies and its gradient with respect to ``hidden``, whatever the head is made of."""
    with torch.enable_grad():
        hidden.requires_grad_()
        loss = _cross_entropy(head(hidden), targets)
    return loss.detach(), torch.autograd.grad(loss, hidden)[0]


def _bare_gradient(hidden: Tensor, targets: Tensor, head: Any) -> tuple[Tensor, Tensor]:
    """Return the same for a head that is one product: the logits turn into their gradient in their own memory, softmax − one-hot.

    −log p(target) is the largest logit − its log p − the target's logit: the likeliest of V has p ≥ 1/V, so nothing underflows.
    """
    gradient = nn.functional.linear(hidden, head.weight, head.bias).float()
    largest, likeliest = gradient.max(dim=1, keepdim=True)
    wanted = gradient.gather(1, targets[:, None])
    torch.softmax(gradient, dim=1, out=gradient)
    loss = (largest - gradient.gather(1, likeliest).log() - wanted).sum()
    gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
    return loss, gradient.to(hidden.dtype) @ head.weight


def _is_bare(head: nn.Module) -> bool:
    """Whether a head is one frozen product and nothing watches its calls."""
    return (
        type(head) is nn.Linear
        and not (head._forward_hooks or head._forward_pre_hooks or head._backward_hooks)  # noqa: SLF001 # a hook must see its call
        and not torch.is_autocast_enabled(head.weight.device.type)
    )


def _vocabulary(head: Callable[[Tensor], Tensor], hidden: Tensor) -> int:
    weight = getattr(head, "weight", None)
    return weight.shape[0] if weight is not None else head(hidden[:1]).shape[-1]
