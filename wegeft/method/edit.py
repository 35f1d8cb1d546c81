"""The edit of activations, ``x + s·φ(ψx)``, and its gradients with as few products and passes over memory as the chain rule allows.

For a linear layer with frozen weight W (out×in) and bias b, and tokens x (T×in), z = x ψᵀ (T×r) is the code, made once and kept.
Then there are two ways to the same y and the same gradients. Through the edited input:

    h = x + s·z φᵀ       y = h Wᵀ + b             with g = ∂L/∂h = (∂L/∂y) W:   ∂L/∂φ = s·gᵀ z            ∂L/∂z = s·g φ

and, for layers that narrow, through the generated weight C = s·W φ (out×r), LoRA's B:

    y = x Wᵀ + b + z Cᵀ                           with G = ∂L/∂y:               ∂L/∂φ = s·Wᵀ (Gᵀ z)        ∂L/∂z = G C

and either way, in the place where the code was made:

    ∂L/∂ψ = (∂L/∂z)ᵀ x       ∂L/∂x = (∂L/∂y) W + (∂L/∂z) ψ

Kept for the backward pass are x, z and the small factors; W by reference, h never. Layers that read one input (q, k and v) make
their codes, and the codes' gradients, in one stacked product. Products run in the dtype of x; gradients come back in the
generator's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

_THIN_RANK = 32
"""Up to here sums over tokens are the faster with the code's side on the left, beyond with the wide side there (MKL, AVX2)."""


def edit_delta(x: Tensor, phi: Tensor, psi: Tensor, scaling: float) -> Tensor:
    """Return ``s·φ(ψx)``, differentiable any number of times, under autocast, ``torch.compile`` and ``torch.func``.

    x: …×width; phi: width×rank; psi: rank×width. Source: arXiv 2312.00700, the activation form.
    """
    code = linear(x, psi.to(x.dtype))
    return (scaling * linear(code, phi.to(code.dtype))).to(x.dtype)


def read_codes(x: Tensor, psis: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return x again, to be used in place of x, and the code ``x ψᵀ`` of each ψ, all in one product.

    The returned x must be consumed by ``edited_linear`` and ``edited_input`` alone: its gradient is taken over without a copy.
    """
    outputs = _ReadCodes.apply(x, *psis)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return outputs[0], outputs[1:]


def edited_input(x: Tensor, code: Tensor, phi: Tensor, scaling: float) -> Tensor:
    """Return ``x + s·z φᵀ`` for plain frozen linear layers that share one generator; x and the code z are from ``read_codes``."""
    result: Tensor = _EditedInput.apply(x, code, phi, scaling)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return result


def edited_linear(x: Tensor, code: Tensor, phi: Tensor, frozen: tuple[Tensor, Tensor | None], scaling: float) -> Tensor:
    """Return ``(x + s·z φᵀ) Wᵀ + b`` for a frozen ``frozen = (W, b)`` and the code z from ``read_codes``, the cheaper way."""
    narrows = is_cheaper_by_weight(tokens=x.numel() // x.shape[-1], width=x.shape[-1], out_features=frozen[0].shape[0])
    function = _ByWeight if narrows else _ByInput
    result: Tensor = function.apply(x, code, phi, *frozen, scaling)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return result


def is_cheaper_by_weight(*, tokens: int, width: int, out_features: int) -> bool:
    """Say whether going through the generated weight takes fewer multiplications than going through the edited input.

    Forward and backward, in units of the rank, beside what both ways share: ``3·tokens·width`` through the input;
    ``3·tokens·out + 2·width·out`` through the weight, the last to generate it and to bring its gradient back to φ.
    """
    return 3 * tokens * out_features + 2 * width * out_features < 3 * tokens * width


class _ReadCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *psis: Tensor) -> tuple[Tensor, ...]:
        stacked = _stack(psis, x.dtype)
        ctx.set_materialize_grads(False)
        ctx.ranks = [psi.shape[0] for psi in psis]
        ctx.dtypes = [psi.dtype for psi in psis]
        ctx.save_for_backward(x, stacked)
        codes = _rows(x) @ stacked.t()
        return x, *torch.split(codes, ctx.ranks, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *code_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, stacked = ctx.saved_tensors
        if all(g is None for g in code_gradients):
            return gradient, *(None for _ in ctx.ranks)
        codes = _join(code_gradients, ctx.ranks, x)
        input_gradient = _input_gradient(gradient, codes, stacked, x) if ctx.needs_input_grad[0] else None
        psi_gradient = torch.split(_sum_over_tokens(codes, _rows(x)), ctx.ranks)
        return input_gradient, *(g.to(dtype) for g, dtype in zip(psi_gradient, ctx.dtypes, strict=True))


class _EditedInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, code: Tensor, phi: Tensor, scaling: float) -> Tensor:
        own = phi.to(x.dtype)
        ctx.scaling, ctx.phi_dtype = scaling, phi.dtype
        ctx.save_for_backward(code, own)
        return torch.addmm(_rows(x), code, own.t(), alpha=scaling).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        code, phi = ctx.saved_tensors
        edited_gradient = _rows(gradient)
        code_gradient = (edited_gradient @ phi).mul_(ctx.scaling)
        phi_gradient = _phi_gradient(code, edited_gradient, ctx) if ctx.needs_input_grad[2] else None
        return gradient, code_gradient, phi_gradient, None


class _ByInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, code: Tensor, phi: Tensor, weight: Tensor, bias: Tensor | None, scaling: float) -> Tensor:  # noqa: PLR0913, PLR0917 # autograd functions take their inputs flat
        own = phi.to(x.dtype)
        ctx.scaling, ctx.shape, ctx.phi_dtype = scaling, x.shape, phi.dtype
        ctx.save_for_backward(code, own, weight)
        edited = torch.addmm(_rows(x), code, own.t(), alpha=scaling)
        return linear(edited, weight, bias).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        code, phi, weight = ctx.saved_tensors
        edited_gradient = _rows(gradient) @ weight
        code_gradient = (edited_gradient @ phi).mul_(ctx.scaling)
        phi_gradient = _phi_gradient(code, edited_gradient, ctx) if ctx.needs_input_grad[2] else None
        return edited_gradient.view(ctx.shape), code_gradient, phi_gradient, None, None, None


class _ByWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, code: Tensor, phi: Tensor, weight: Tensor, bias: Tensor | None, scaling: float) -> Tensor:  # noqa: PLR0913, PLR0917 # autograd functions take their inputs flat
        generated = (weight @ phi.to(x.dtype)).mul_(scaling)
        ctx.scaling, ctx.shape, ctx.phi_dtype = scaling, x.shape, phi.dtype
        ctx.save_for_backward(code, generated, weight)
        written = linear(_rows(x), weight, bias).addmm_(code, generated.t())
        return written.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        code, generated, weight = ctx.saved_tensors
        written_gradient = _rows(gradient)
        code_gradient = written_gradient @ generated
        phi_gradient = _phi_gradient(code, written_gradient, ctx, weight) if ctx.needs_input_grad[2] else None
        return (written_gradient @ weight).view(ctx.shape), code_gradient, phi_gradient, None, None, None


def _phi_gradient(code: Tensor, gradient: Tensor, ctx: Any, weight: Tensor | None = None) -> Tensor:
    """Return ``s·gᵀz``, or with a weight ``s·Wᵀ(Gᵀz)``."""
    product = _sum_over_tokens(code, gradient)
    own = product.t() if weight is None else (product @ weight).t()
    return own.mul_(ctx.scaling).to(ctx.phi_dtype)


def _sum_over_tokens(code: Tensor, wide: Tensor) -> Tensor:
    """Return ``zᵀ w``, rank×width, made in the order that is the faster for the rank; strides differ, autograd sums either."""
    return code.t() @ wide if code.shape[1] <= _THIN_RANK else (wide.t() @ code).t()


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _stack(psis: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return psis[0].to(dtype) if len(psis) == 1 else torch.cat([psi.to(dtype) for psi in psis])


def _join(gradients: Sequence[Tensor | None], ranks: Sequence[int], x: Tensor) -> Tensor:
    """Return the gradients of all codes side by side; a code that was not used counts as zeros."""
    if len(gradients) == 1 and gradients[0] is not None:
        return gradients[0]
    tokens = x.numel() // x.shape[-1]
    return torch.cat([x.new_zeros(tokens, rank) if g is None else g for g, rank in zip(gradients, ranks, strict=True)], dim=1)


def _input_gradient(gradient: Tensor | None, codes: Tensor, stacked: Tensor, x: Tensor) -> Tensor:
    """Return ``g + (∂L/∂z) ψ``, in the memory of g: ``edited_linear`` made it, and nothing else sees it."""
    if gradient is None:
        return (codes @ stacked).view(x.shape)
    return _rows(gradient).addmm_(codes, stacked).view(x.shape)
