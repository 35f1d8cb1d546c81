"""SCAFFOLD at a site (Karimireddy et al., 2020, option II): plain gradient steps, corrected by how the site's gradients differ from all's.

A step is ``y ← y − η·(g + c − cᵢ)`` with the clipped gradient ``g``. After steps of rates ``ηₖ`` from ``x``, the site's control variate
becomes ``cᵢ − c + (x − y)/Σηₖ``: the mean of its gradients on the way, weighted by their rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wegeft.contracts.control_variates import control_of
from wegeft.contracts.wire import Wire, as_received

Control = Mapping[str, NDArray[np.float64]]
"""A control variate, by the name of the tensor that it is for."""


class Correction:
    """Adds ``c − cᵢ`` to the gradients of each optimizer step."""

    def __init__(self, parameters: Mapping[str, Tensor], shift: Mapping[str, NDArray[Any]]) -> None:
        """``shift``: ``c − cᵢ`` by the name of its parameter; every parameter has one."""
        self._shifts = [
            (parameter, torch.tensor(np.ascontiguousarray(shift[name]), dtype=parameter.dtype, device=parameter.device))
            for name, parameter in parameters.items()
        ]

    def apply(self) -> None:
        """Correct the gradients; call it once an optimizer step, after they are clipped, so that what is clipped is the site's own."""
        for parameter, shift in self._shifts:
            parameter.grad = shift.clone() if parameter.grad is None else parameter.grad.add_(shift)


def shift_of(server: Control, own: Control) -> dict[str, NDArray[np.float64]]:
    """Return ``c − cᵢ``; a tensor that ``own`` has nothing for has ``cᵢ = 0``."""
    return {name: c - _own(own, name, c) for name, c in server.items()}


def change_of_control(moved: Control, server: Control, rates: float) -> dict[str, NDArray[np.float64]]:
    """Return ``Δcᵢ = −c + (x − y)/Σηₖ``; ``moved`` is ``y − x`` and ``rates`` the sum of the steps' rates. Without a step it is 0."""
    if rates <= 0:
        return {name: np.zeros_like(c) for name, c in server.items()}
    return {name: -(c + moved[name] / rates) for name, c in server.items()}


def fit_change(change: Control, max_norm: float, wire: Wire) -> dict[str, NDArray[np.float64]]:
    """Return ``change``, shortened where what the server reads off the wire would be longer than ``max_norm``."""
    length = _length(_received(change, wire))
    share = 1.0
    while length > max_norm:
        # What int8 makes of a shorter one is not quite the same share of its length.
        share *= 0.999 * max_norm / length
        length = _length(_received(_scaled(change, share), wire))
    return _scaled(change, share)


def advance_control(own: Control, change: Control, wire: Wire) -> dict[str, NDArray[np.float64]]:
    """Return the site's next control variate, all its tensors: changed by exactly what the server will read off the wire."""
    received = _received(change, wire)
    return {**own, **{name: _own(own, name, moved) + moved for name, moved in received.items()}}


def _own(own: Control, name: str, like: NDArray[np.float64]) -> NDArray[np.float64]:
    found = own.get(name)
    return found if found is not None and found.shape == like.shape else np.zeros_like(like)


def _scaled(change: Control, share: float) -> dict[str, NDArray[np.float64]]:
    return {name: share * array for name, array in change.items()}


def _received(change: Control, wire: Wire) -> dict[str, NDArray[np.float64]]:
    return {name: as_received(control_of(name), array, wire) for name, array in change.items()}


def _length(change: Control) -> float:
    return float(np.sqrt(sum(float(np.square(array).sum()) for array in change.values())))
