"""The trainable numbers of one generator."""

import math
from typing import assert_never

import torch
from torch import Tensor, nn

from wegeft.method.config import Initialisation, Transform, WeGeFTConfig
from wegeft.method.generator import Generator
from wegeft.method.sharing import Group


class GeneratorWeights(nn.Module):
    """One pair (φ, ψ), owned by the tuner and shared by every layer of its group.

    ``phi`` is width×rank and ``psi`` rank×width, as in the paper; the edit of a vector is ``x + s·φ(ψx)``. The pair is defined up to
    a gauge: ``(φR, R⁻¹ψ)`` is the same function for every invertible R, so factors of two adapters must never be averaged.
    """

    phi: nn.Parameter
    psi: nn.Parameter

    def __init__(self, group: Group, config: WeGeFTConfig, like: Tensor | None) -> None:
        super().__init__()
        device = like.device if like is not None else None
        dtype = like.dtype if like is not None and like.dtype in _TRAINABLE_DTYPES else torch.float32
        self.phi = nn.Parameter(torch.empty(group.width, group.rank, device=device, dtype=dtype))
        self.psi = nn.Parameter(torch.empty(group.rank, group.width, device=device, dtype=dtype))
        self.scaling = group.scaling
        self.transform: Transform = config.transform
        self.weight_dropout = config.weight_dropout
        self.input_dropout = config.input_dropout
        self.initialise(config.init_weights)

    @property
    def rank(self) -> int:
        return int(self.psi.shape[0])

    @property
    def width(self) -> int:
        return int(self.psi.shape[1])

    @torch.no_grad()
    def initialise(self, how: Initialisation) -> None:
        """Fill φ and ψ so that the edit is the identity; which one is zero decides which one the first step moves.

        ``phi_zero`` is the language code of 2025 (ψ uniform in ±1/√width), ``psi_zero`` is GIFT and the vision code (φ uniform in
        ±1/√width), ``orthogonal`` is ``phi_zero`` with orthonormal rows of ψ.
        """
        if self.psi.is_meta:
            return
        bound = 1 / math.sqrt(self.width)
        match how:
            case "phi_zero":
                self.phi.zero_()
                self.psi.uniform_(-bound, bound)
            case "psi_zero":
                self.phi.uniform_(-bound, bound)
                self.psi.zero_()
            case "orthogonal":
                self.phi.zero_()
                self.psi.copy_(nn.init.orthogonal_(torch.empty_like(self.psi, dtype=torch.float32)))
            case _:
                assert_never(how)

    @torch.no_grad()
    def take(self, generator: Generator[Tensor]) -> None:
        """Become another generator of the same shape and scale 1, in its dtype."""
        self.phi = nn.Parameter(generator.phi.clone().contiguous(), requires_grad=self.phi.requires_grad)
        self.psi = nn.Parameter(generator.psi.clone().contiguous(), requires_grad=self.psi.requires_grad)

    def extra_repr(self) -> str:
        return f"width={self.width}, rank={self.rank}, scaling={self.scaling:g}, transform={self.transform}"


_TRAINABLE_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
