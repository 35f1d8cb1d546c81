"""Server optimizers: what the server makes of a round's mean update, with Flower's names, formulas and defaults.

``FedAvgM`` after Hsu et al. (2019), the adaptive ones after Reddi et al. (2021), as in ``flwr.serverapp.strategy``: Adam's bias correction
counts from the round after the present one, and Yogi and Adagrad have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import assert_never

import numpy as np

from orchestrator.aggregate.state import Array
from wegeft.contracts.federation_rules import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, ServerOptimiser

Moments = Mapping[str, Array]


def take_step(optimiser: ServerOptimiser, update: Array, moments: Moments, round_number: int) -> tuple[Array, dict[str, Array]]:
    """Return what to add to the present value, and the new moments ``m`` and ``v`` of this array.

    ``update`` is the mean of the sites' values minus the present value; ``round_number`` counts from 1; moments start as zeros.
    """
    first, second = (moments.get(name, np.zeros_like(update)) for name in ("m", "v"))
    match optimiser:
        case FedAvg():
            return update, {}
        case FedAvgM():
            first = optimiser.server_momentum * first + update
            return optimiser.server_learning_rate * first, {"m": first} if optimiser.server_momentum else {}
        case FedAdam():
            first = optimiser.beta_1 * first + (1 - optimiser.beta_1) * update
            second = optimiser.beta_2 * second + (1 - optimiser.beta_2) * update**2
            eta = optimiser.eta * math.sqrt(1 - optimiser.beta_2 ** (round_number + 1)) / (1 - optimiser.beta_1 ** (round_number + 1))
        case FedYogi():
            first = optimiser.beta_1 * first + (1 - optimiser.beta_1) * update
            second = second - (1 - optimiser.beta_2) * update**2 * np.sign(second - update**2)
            eta = optimiser.eta
        case FedAdagrad():
            first, second, eta = update, second + update**2, optimiser.eta
        case _:
            assert_never(optimiser)
    return eta * first / (np.sqrt(second) + optimiser.tau), {"m": first, "v": second}
