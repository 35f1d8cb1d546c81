"""Aggregation rules on a toy, side by side: the same sites, the same steps, paired differences.

    python -m bench.federation_rules                        # minutes on two cores
    python -m bench.federation_rules --seeds 1 --rounds 2   # seconds

A frozen network that was trained on ten clusters meets the same clusters rotated. Twenty sites, each with its own Dirichlet share of the
classes, train one generator that four hidden layers share. A toy: it orders rules by how they put updates together and says nothing of
language models.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from orchestrator.aggregate import Contribution, FederationState, Outcome, Plan, aggregate, new_edit, start_at
from wegeft.algebra import Generator, from_rows
from wegeft.contracts.federation_rules import FactorMean, FreezePhi, GeneratorExact, GeneratorTruncate, Rule, Stack, sent_parts

CLASSES, INPUTS, WIDTH, LAYERS, RANK, SCALE = 10, 64, 64, 4, 4, 2.0
RULES: dict[str, Rule] = {
    "factor_mean, not aligned (FedIT)": FactorMean(align=False),
    "factor_mean": FactorMean(),
    "generator_truncate": GeneratorTruncate(),
    "generator_exact": GeneratorExact(),
    "stack, rank 64": Stack(max_rank=64),
    "freeze_phi (FFA)": FreezePhi(),
}

Send = Callable[[int, dict[str, np.ndarray]], dict[str, np.ndarray]]
"""What becomes of a site's update, by the site's number, on its way."""


@dataclass(frozen=True)
class Data:
    """Rows and their classes."""

    x: Tensor
    y: Tensor


def draw_data(seed: int, count: int, rotation: np.ndarray) -> Data:
    """Return points around ten centres, rotated."""
    centres = np.random.default_rng(0).standard_normal((CLASSES, INPUTS)) * 0.45
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, count)
    x = (centres[y] + random.standard_normal((count, INPUTS))) @ rotation
    return Data(torch.tensor(x, dtype=torch.float32), torch.tensor(y))


def some_rotation() -> np.ndarray:
    """Return a rotation far from the identity (the Cayley transform of a random skew matrix)."""
    square = np.random.default_rng(5).standard_normal((INPUTS, INPUTS)) * (1.2 / INPUTS**0.5)
    skew, one = square - square.T, np.eye(INPUTS)
    return np.linalg.solve(one - skew / 2, one + skew / 2)


def forward(weights: list[Tensor], x: Tensor, edit: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return logits; every hidden layer reads its input edited by the one generator."""
    h = torch.relu(x @ weights[0].T)
    for weight in weights[1:-1]:
        read = h if edit is None else h + SCALE * (h @ edit[1].T) @ edit[0].T
        h = torch.relu(read @ weight.T) + 0.3 * h
    return h @ weights[-1].T


def pretrain() -> list[Tensor]:
    """Return the frozen network, trained on what is not rotated."""
    torch.manual_seed(0)
    shapes = [(WIDTH, INPUTS), *[(WIDTH, WIDTH)] * LAYERS, (CLASSES, WIDTH)]
    weights = [(torch.randn(shape) / shape[1] ** 0.5 * 1.3).requires_grad_() for shape in shapes]
    data, optimiser = draw_data(1, 4000, np.eye(INPUTS)), torch.optim.Adam(weights, 1e-3)
    for _ in range(300):
        rows = torch.randint(0, len(data.x), (128,))
        optimiser.zero_grad()
        cross_entropy(forward(weights, data.x[rows]), data.y[rows]).backward()
        optimiser.step()
    return [weight.detach() for weight in weights]


def share_out(data: Data, sites: int, alpha: float, seed: int) -> list[Data]:
    """Return the sites' parts, each class by its own Dirichlet draw; sites with fewer than eight rows are left out."""
    random, parts = np.random.default_rng(seed), [[] for _ in range(sites)]
    for kind in range(CLASSES):
        rows = random.permutation(np.flatnonzero(data.y.numpy() == kind))
        cuts = (np.cumsum(random.dirichlet([alpha] * sites))[:-1] * len(rows)).astype(int)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.extend(piece.tolist())
    return [Data(data.x[part], data.y[part]) for part in parts if len(part) >= 8]


def tensors_of(generator: Generator) -> tuple[Tensor, Tensor]:
    """Return φ and ψ at the common scale, as float32."""
    phi = torch.tensor(generator.phi * (generator.scale / SCALE), dtype=torch.float32)
    return phi, torch.tensor(generator.psi, dtype=torch.float32)


def train_site(
    weights: list[Tensor], data: Data, state: FederationState, rule: Rule, options: tuple[int, int, float, int]
) -> dict[str, np.ndarray]:
    """Return how far a site's factors moved in ``steps`` steps of Adam; options: round, steps, learning rate, seed."""
    number, steps, rate, seed = options
    pair, frozen = start_at(state.edits["all"], None)
    parts = dict(zip(("phi", "psi"), tensors_of(pair), strict=True))
    begun = {name: part.clone() for name, part in parts.items()}
    trained = [parts[name].requires_grad_() for name in sent_parts(rule, number)]
    held, optimiser = tensors_of(frozen), torch.optim.Adam(trained, rate)
    torch.manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(0, len(data.x), (32,))
        edit = (torch.cat([parts["phi"], held[0]], 1), torch.cat([parts["psi"], held[1]]))
        optimiser.zero_grad()
        cross_entropy(forward(weights, data.x[rows], edit), data.y[rows]).backward()
        optimiser.step()
    return {f"all.{name}": (parts[name].detach() - begun[name]).numpy() for name in sent_parts(rule, number)}


def accuracy(weights: list[Tensor], state: FederationState, data: Data) -> float:
    """Return the share of ``data`` that the federation's generator gets right."""
    edit = state.edits["all"]
    parts = [tensors_of(edit.pair), tensors_of(edit.residual)]
    joined = (torch.cat([phi for phi, _ in parts], 1), torch.cat([psi for _, psi in parts]))
    with torch.no_grad():
        return float((forward(weights, data.x, joined).argmax(1) == data.y).float().mean())


def as_trained(_site: int, moved: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a site's update as the server gets it: whole."""
    return moved


def run(
    rule: Rule, seed: int, weights: list[Tensor], test: Data, options: argparse.Namespace, send: Send = as_trained
) -> tuple[float, float]:
    """Return accuracy (mean of the last third of the rounds) and the mean aggregation residual."""
    parts = share_out(draw_data(100 + seed, 4000, some_rotation()), options.sites, options.alpha, seed)
    random, zero = np.random.default_rng(seed).uniform(-1, 1, (RANK, WIDTH)) / WIDTH**0.5, np.zeros((RANK, WIDTH))
    first = from_rows(p=random, q=zero, scale=SCALE) if isinstance(rule, FreezePhi) else from_rows(p=zero, q=random, scale=SCALE)
    state, found, residuals = FederationState(edits={"all": new_edit(first)}), [], []
    for number in range(1, options.rounds + 1):
        members = []
        for index, part in enumerate(parts):
            trained = train_site(weights, part, state, rule, (number, options.steps, options.rate, 1000 * seed + 50 * number + index))
            moved = send(index, trained)
            members.append(Contribution(site=f"s-{index:02}", examples=len(part.x), load=lambda moved=moved: moved))
        outcome = aggregate(Plan(rule=rule, round=number), state, members)
        assert isinstance(outcome, Outcome)
        state = outcome.state
        found.append(accuracy(weights, state, test))
        residuals.append(outcome.measures["aggregation_residual"])
    return statistics.mean(found[-max(1, options.rounds // 3) :]), statistics.mean(residuals)


def main() -> None:
    """Run all rules over all seeds and print accuracies and paired differences to the first rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--alpha", type=float, default=0.1, help="of the Dirichlet shares; less is less alike")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=40, help="local steps in a round")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights, test = pretrain(), draw_data(99, 2000, some_rotation())
    before = accuracy(weights, FederationState(edits={"all": new_edit(from_rows(p=np.zeros((1, WIDTH)), q=np.zeros((1, WIDTH))))}), test)
    print(f"before: {100 * before:.1f} %")
    reference: list[float] = []
    for name, rule in RULES.items():
        start = time.perf_counter()
        results = [run(rule, seed, weights, test, options) for seed in range(options.seeds)]
        scores = [100 * score for score, _ in results]
        reference = reference or scores
        gaps = [score - other for score, other in zip(scores, reference, strict=True)]
        spread = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        wins = sum(gap > 0 for gap in gaps)
        gap = f"{statistics.mean(gaps):+5.1f} ± {spread:.1f} ({wins}/{len(gaps)} better)"
        residual, seconds = statistics.mean(value for _, value in results), time.perf_counter() - start
        print(f"{name:34} {statistics.mean(scores):5.1f} %  difference {gap}  residual {residual:.2f}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
