"""What Flower's strategies make of given updates, written to flower_steps.json for test_flower_steps.py.

    ENVIRONMENT_WITH_FLWR/bin/python tests/orchestrator/aggregate/flower_steps.py

Run it again for another version of Flower; it is not needed to run the tests.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from flwr.supercore.task_identity import TaskIdentity

SITES, ROUNDS, WIDTH, RANK = 3, 4, 4, 2
SHAPES = {"phi": (WIDTH, RANK), "psi": (RANK, WIDTH)}
STRATEGIES = [
    (FedAvg, {}),
    (FedAvgM, {}),
    (FedAvgM, {"server_learning_rate": 0.5, "server_momentum": 0.9}),
    (FedAdam, {}),
    (FedAdam, {"eta": 0.02, "beta_1": 0.5, "beta_2": 0.9, "tau": 0.01}),
    (FedYogi, {}),
    (FedYogi, {"eta": 0.3, "beta_1": 0.0}),
    (FedAdagrad, {}),
    (FedAdagrad, {"eta": 1.0, "tau": 1e-6}),
]


class NoGrid:
    """Nobody to ask: only what aggregation remembers of a round's start is wanted."""

    def get_node_ids(self) -> list[int]:
        return list(range(1, SITES + 1))


def drawn(draws: np.random.Generator, scale: float) -> dict[str, np.ndarray]:
    return {name: draws.normal(scale=scale, size=shape).round(3) for name, shape in SHAPES.items()}


def record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def listed(arrays: dict[str, np.ndarray]) -> dict[str, list[list[float]]]:
    return {name: array.round(9).tolist() for name, array in arrays.items()}


def reply(site: int, arrays: dict[str, np.ndarray], examples: int) -> Message:
    content = RecordDict({"arrays": record(arrays), "metrics": MetricRecord({"num-examples": examples})})
    return Message(content=content, dst_node_id=site, message_type="train")


def run(kind: type[FedAvg], options: dict[str, float], seed: int) -> dict[str, object]:
    """Return how far each site moves in each round, and where the strategy goes."""
    draws, strategy = np.random.default_rng(seed), kind(**options)
    now = start = drawn(draws, 1.0)
    rounds = []
    for number in range(1, ROUNDS + 1):
        list(strategy.configure_train(number, record(now), ConfigRecord(), NoGrid()))
        moved = [drawn(draws, 0.3) for _ in range(SITES)]
        examples = [int(count) for count in draws.integers(1, 100, SITES)]
        replies = [reply(site + 1, {name: now[name] + moved[site][name] for name in now}, examples[site]) for site in range(SITES)]
        arrays, _ = strategy.aggregate_train(number, replies)
        now = {name: arrays[name].numpy() for name in SHAPES}
        rounds.append({"moved": [listed(one) for one in moved], "examples": examples, "after": listed(now)})
    return {"name": kind.__name__, "options": options, "start": listed(start), "rounds": rounds}


if __name__ == "__main__":
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    runs = [run(kind, options, seed) for seed, (kind, options) in enumerate(STRATEGIES)]
    Path(__file__).with_name("flower_steps.json").write_text(json.dumps({"flwr": version("flwr"), "runs": runs}) + "\n", encoding="utf-8")
