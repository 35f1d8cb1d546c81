"""FedProx (Li et al., 2020) in a step: a spring from what is trained to where it began, so that sites with other rows drift less apart."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor


class Spring:
    """Adds μ/2·‖θ − θ_start‖² to the loss of each optimizer step, by its gradient; ``θ_start`` is where θ is when this is made."""

    def __init__(self, parameters: Collection[Tensor], mu: float) -> None:
        self._mu = mu
        self._starts = [(parameter, parameter.detach().clone()) for parameter in parameters]

    def pull(self) -> None:
        """Add μ·(θ − θ_start) to the gradients; call it once an optimizer step, after its micro-batches and before clipping."""
        with torch.no_grad():
            for parameter, start in self._starts:
                force = (parameter - start).mul_(self._mu)
                parameter.grad = force if parameter.grad is None else parameter.grad.add_(force)
