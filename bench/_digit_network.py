"""The quick form of the rotated digits: a frozen network of four hidden layers that share one generator, trained by a loop of its own.

Sites' training is all that is quick here: offers, starts, wire, gate, attacks, defences and rules are those of a simulation, and so of real
rounds. ``--task vit`` trains by the workers' own loop instead, at a hundred times the cost.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench._rotated_digits import LABELS, read_given
from orchestrator.aggregate import FederationState, new_edit
from orchestrator.federation_start import Start
from simulation.partition import share_out
from simulation.preparation import Given, Simulation
from simulation.scenario import Options, make_scenario, site_names
from wegeft.algebra import from_rows
from wegeft.contracts.federation_rules import Core, FreezePhi, Rule
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.job import JobSpec
from wegeft.contracts.wire import write_update
from workers.generator_start import read_start
from workers.labelled_rows import LabelledImage
from workers.simulated_site import EVERYBODY, AnyOrder, AnyResult, Measured, TrainOrder, Workplace
from workers.site_training import Trained, seed_of

WIDTH, LAYERS, RANK, SCALE, BATCH = 64, 4, 4, 2.0, 32
"""The width is the number of pixels."""
_GROUP = "hidden"


@dataclass(frozen=True)
class Digits:
    """Pixels, and what they show."""

    x: Tensor
    y: Tensor


def pixels_of(rows: list[LabelledImage]) -> Digits:
    """Return images as rows of 64 numbers from -1 to 1."""
    images = [np.asarray(Image.open(io.BytesIO(row.content)), dtype=np.float32).ravel() / 127.5 - 1 for row in rows]
    return Digits(torch.tensor(np.array(images)), torch.tensor([LABELS.index(str(row.label)) for row in rows]))


@cache
@torch.enable_grad()  # whoever measures first asks without
def pretrained() -> tuple[Tensor, ...]:
    """Return the frozen weights, trained on upright digits, the same each time."""
    torch.manual_seed(0)
    shapes = [(WIDTH, WIDTH)] * (LAYERS + 1) + [(len(LABELS), WIDTH)]
    weights = [(torch.randn(shape) / shape[1] ** 0.5 * 1.3).requires_grad_() for shape in shapes]
    data, optimiser = pixels_of([row for row in read_given(0).rows if isinstance(row, LabelledImage)]), torch.optim.Adam(weights, 1e-3)
    for _ in range(400):
        rows = torch.randint(0, len(data.x), (64,))
        optimiser.zero_grad()
        cross_entropy(forward(weights, data.x[rows]), data.y[rows]).backward()
        optimiser.step()
    return tuple(weight.detach() for weight in weights)


def forward(weights: list[Tensor] | tuple[Tensor, ...], x: Tensor, edit: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return logits; every hidden layer reads its input edited by the one generator (φ, ψ), which is scaled already."""
    h = torch.relu(x @ weights[0].T)
    for weight in weights[1:-1]:
        read = h if edit is None else h + (h @ edit[0]) @ edit[1]
        h = torch.relu(read @ weight.T) + 0.3 * h
    return h @ weights[-1].T


@dataclass(frozen=True, eq=False)
class Hand:
    """Trains and measures; it depends on the order alone."""

    parts: Mapping[str, list[int]]
    rows: Digits
    held_out: Digits
    learning_rate: float

    def __call__(self, order: AnyOrder) -> AnyResult:
        """Return what came of an order."""
        return self._train(order) if isinstance(order, TrainOrder) else self._measure(order.start)

    def _train(self, order: TrainOrder) -> Trained:
        start, numbers = read_start(order.start, order.offer.tensors), self._numbers(order.site)
        x, y = self.rows.x[numbers], self.rows.y[numbers]
        if order.rows is not None:
            y = pixels_of([row for row in order.rows if isinstance(row, LabelledImage)]).y
        parts = {name: torch.tensor(array) for name, array in start.trained.items()}
        learnt = [parts[name].requires_grad_() for name in sorted(start.learns)]
        frozen = [torch.tensor(array) for array in (start.frozen[_GROUP].phi, start.frozen[_GROUP].psi)] if start.frozen else []
        optimiser, weights = torch.optim.Adam(learnt, self.learning_rate), pretrained()
        torch.manual_seed(seed_of(order.offer))
        steps = order.times * (order.offer.max_steps or 1)
        for _ in range(steps):
            rows = torch.randint(0, len(x), (BATCH,))
            optimiser.zero_grad()
            loss = cross_entropy(forward(weights, x[rows], _edit(parts, frozen, start.scale)), y[rows])
            loss.backward()
            optimiser.step()
        moved = {name: (parts[name].detach().double().numpy() - start.trained[name].astype(np.float64)) for name in sorted(start.learns)}
        content = write_update(moved, order.offer.wire)
        metrics = {"train_loss": loss.item()}
        return Trained(
            tensors=content,
            examples=len(numbers),
            steps=steps,
            norm=0.0,
            is_shortened=False,
            carried={},
            control={},
            metrics=metrics,
        )

    def _numbers(self, site: str) -> list[int]:
        return list(range(len(self.rows.x))) if site == EVERYBODY else self.parts[site]

    def _measure(self, content: bytes) -> Measured:
        start = read_start(content, ())
        parts = {name: torch.tensor(array) for name, array in start.trained.items()}
        frozen = [torch.tensor(array) for array in (start.frozen[_GROUP].phi, start.frozen[_GROUP].psi)] if start.frozen else []
        with torch.no_grad():
            logits = forward(pretrained(), self.held_out.x, _edit(parts, frozen, start.scale))
        right = (logits.argmax(1) == self.held_out.y).double().mean()
        return Measured(loss=float(cross_entropy(logits, self.held_out.y)), metrics={"accuracy": float(right)})


def _edit(parts: Mapping[str, Tensor], frozen: list[Tensor], scale: float) -> tuple[Tensor, Tensor]:
    core = parts.get(f"{_GROUP}.core")
    psi = parts[f"{_GROUP}.psi"] if core is None else core @ parts[f"{_GROUP}.psi"]
    phi = parts[f"{_GROUP}.phi"]
    if frozen:
        phi, psi = torch.cat([phi, frozen[0]], 1), torch.cat([psi, frozen[1]])
    return scale * phi, psi


def network_simulation(section: FederationSpec, options: Options, steps: int) -> Simulation:
    """Return the simulation of a federation of the network, whose crew must be a :class:`Hand`."""
    given = rotated()
    spec = JobSpec.model_validate_json('{"name": "digits", "base_model": "network", "rank": 4, "alpha": 8, "federation": {}}')
    spec = spec.model_copy(update={"federation": section, "max_steps": steps, "seed": options.seed})
    scenario = make_scenario(options, spec, options.sites or 0)
    parts = share_out([str(value) for value in given.values], scenario.shares, scenario.sites, scenario.seed)
    return Simulation(
        scenario=scenario,
        rounds=options.rounds or section.rounds,
        workplace=Workplace(
            spec=spec, rows=given.rows, parts=dict(zip(site_names(scenario.sites), parts, strict=True)), held_out=given.held_out
        ),
        start=Start(config={}, state=first_state(section.rule, options.seed)),
        section=section,
        kinds="10 labels",
    )


@cache
def rotated() -> Given:
    """Return the digits turned by a right angle."""
    return read_given()


def hand_for(simulation: Simulation, learning_rate: float) -> Hand:
    """Return what trains and measures for a simulation."""
    parts = {site: list(part) for site, part in simulation.workplace.parts.items()}
    return Hand(parts, _turned(held_out=False), _turned(held_out=True), learning_rate)


@cache
def _turned(*, held_out: bool) -> Digits:
    rows = rotated().held_out if held_out else rotated().rows
    return pixels_of([row for row in rows if isinstance(row, LabelledImage)])


def first_state(rule: Rule, seed: int) -> FederationState:
    """Return the generator that a rule begins with: no edit, but one whose factors can learn."""
    random = np.random.default_rng(seed)
    drawn, other = (random.uniform(-1, 1, (RANK, WIDTH)) / WIDTH**0.5 for _ in range(2))
    zero = np.zeros((RANK, WIDTH))
    match rule:
        case Core():
            return FederationState(edits={_GROUP: new_edit(from_rows(p=drawn, q=other, scale=SCALE), np.zeros((RANK, RANK)))})
        case FreezePhi():
            return FederationState(edits={_GROUP: new_edit(from_rows(p=drawn, q=zero, scale=SCALE))})
        case _:
            return FederationState(edits={_GROUP: new_edit(from_rows(p=zero, q=drawn, scale=SCALE))})
