"""Folding an edit into a frozen weight, and out again without a copy of the weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method.config import Transform

CONDITION_LIMIT = 1e4
"""Largest condition number of ``I + φψ`` for which a merge is undone by solving; beyond it rounding would show in float32 weights."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One generator as merging sees it: ``M = φψ`` with the scale folded into φ, both float32 or better, without gradients."""

    phi: Tensor
    psi: Tensor
    transform: Transform


def delta_weight(weight: Tensor, edit: Edit) -> Tensor:
    """Return ΔW (out×in): ``W φ ψ`` for the input form, ``φ ψ W`` for the output form. weight: out×in."""
    if edit.transform == "input":
        return (weight @ edit.phi) @ edit.psi
    return edit.phi @ (edit.psi @ weight)


def delta_bias(bias: Tensor, edit: Edit) -> Tensor | None:
    """Return Δb: ``φψb`` for the output form, which edits what the layer writes, bias included; None for the input form."""
    return edit.phi @ (edit.psi @ bias) if edit.transform == "output" else None


def join(edits: Sequence[Edit]) -> Edit:
    """Return one edit with ``M = ΣMᵢ``, its factors side by side; all must have one transform."""
    return Edit(
        phi=torch.cat([edit.phi for edit in edits], dim=1),
        psi=torch.cat([edit.psi for edit in edits], dim=0),
        transform=edits[0].transform,
    )


def condition_number(edit: Edit) -> float:
    """Return ``cond(I + φψ)`` in the 2-norm, from a block of at most 2·rank: outside the span of φ and ψᵀ the edit is the identity."""
    phi, psi = edit.phi.double(), edit.psi.double()
    basis = torch.linalg.qr(torch.cat([phi, psi.t()], dim=1)).Q
    block = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device) + (basis.t() @ phi) @ (psi @ basis)
    singular = torch.linalg.svdvals(block)
    return max(1.0, float(singular.max())) / min(1.0, float(singular.min()) or float("nan"))


def unmerge(weight: Tensor, bias: Tensor | None, edit: Edit, stored: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias from before ``edit`` was merged, by Woodbury's identity, never inverting more than rank×rank.

    ``W = W' − W'φ (I + ψφ)⁻¹ ψ`` for the input form and ``W = W' − φ (I + ψφ)⁻¹ ψ W'`` for the output form. ``stored`` is the dtype in
    which W' was kept. Raises ``InvalidAdapterConfig`` if ``I + φψ`` is so ill-conditioned that the result would not be the old weight.
    """
    condition, limit = condition_number(edit), min(CONDITION_LIMIT, 1 / torch.finfo(stored).eps)
    if not condition <= limit:
        raise InvalidAdapterConfig(
            f"the merge cannot be undone: the edit's condition number {condition:.3g} exceeds {limit:.3g}",
            hint="merge with keep_copy=True, or load the base model again",
        )
    core = torch.eye(edit.psi.shape[0], dtype=edit.psi.dtype, device=edit.psi.device) + edit.psi @ edit.phi
    if edit.transform == "input":
        return weight - (weight @ edit.phi) @ torch.linalg.solve(core, edit.psi), bias
    restored = weight - edit.phi @ torch.linalg.solve(core, edit.psi @ weight)
    return restored, None if bias is None else bias - edit.phi @ torch.linalg.solve(core, edit.psi @ bias)
