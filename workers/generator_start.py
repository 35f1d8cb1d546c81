"""What a federation's site begins from: the generators that it trains, those that stay frozen beside them, and how far it has moved."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wegeft.algebra import Generator
from wegeft.contracts.control_variates import is_control
from wegeft.contracts.errors import InvalidTensors, Problem
from wegeft.contracts.tensors import parse_header, read_tensors
from wegeft.method import WeGeFTConfig
from wegeft.method.weights import GeneratorWeights

TRAINED = "default"
"""Adapter that learns."""
FROZEN = "frozen"
"""Adapter that is evaluated beside it and stays as it is."""

_PART = re.compile(r"(?P<group>.+?)(?P<frozen>\.frozen)?\.(?P<part>phi|psi|core)(?P<control>\.control)?\Z")


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Generators to begin from, each by the key of the layers that share it."""

    trained: Mapping[str, NDArray[np.float32]]
    """``<group>.phi`` (width×rank), ``<group>.psi`` (rank×width) and, where one is trained between them, ``<group>.core`` (rank×rank)."""
    frozen: Mapping[str, Generator[NDArray[np.float32]]]
    """Evaluated beside the trained ones; only groups that have any."""
    scale: float
    """Of all trained generators, ``alpha / rank``."""
    learns: frozenset[str]
    """Names in ``trained`` that move."""
    controls: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """The server's control variate for each tensor that moves, by that tensor's name; empty without any."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Keys of the generators, sorted."""
        return tuple(sorted(name.removesuffix(".phi") for name in self.trained if name.endswith(".phi")))


def read_start(content: bytes, learns: Collection[str]) -> Start:
    """Return what the bytes of an offer's start hold; ``learns`` names the tensors that are to move, and control variates with them.

    Raises :class:`InvalidTensors` where the bytes are no start, hold no tensor of that name, or scale their generators differently.
    """
    tensors = read_tensors(content)
    scales = _scales(content)
    trained, frozen = {}, dict[str, dict[str, NDArray[np.float32]]]()
    controls = {}
    for name, array in tensors.items():
        match = _PART.match(name)
        if match is None or match["group"] not in scales:
            raise InvalidTensors("a tensor that belongs to no generator", path=name, hint="<group>.phi, .psi or .core")
        if match["control"]:
            controls[f"{match['group']}.{match['part']}"] = array.astype(np.float64)
        elif match["frozen"]:
            frozen.setdefault(match["group"], {})[match["part"]] = array
        else:
            trained[name] = array
    _check_parts(scales, trained, frozen, {name for name in learns if not is_control(name)})
    _check_controls(trained, controls, learns)
    return Start(
        trained=trained,
        frozen={group: Generator(phi=parts["phi"], psi=parts["psi"], scale=scales[group]) for group, parts in frozen.items()},
        scale=next(iter(scales.values())),
        learns=frozenset(name for name in learns if not is_control(name)),
        controls=controls,
    )


def _scales(content: bytes) -> dict[str, float]:
    metadata = parse_header(content, len(content)).metadata
    try:
        scales = {str(group): float(scale) for group, scale in json.loads(metadata["scales"]).items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InvalidTensors("the start names no scales", path="__metadata__.scales") from error
    if len(set(scales.values())) != 1 or not all(np.isfinite(scale) and scale > 0 for scale in scales.values()):
        raise InvalidTensors("the generators must share one positive scale", path="__metadata__.scales", value=scales)
    return scales


def _check_parts(
    scales: Mapping[str, float],
    trained: Mapping[str, NDArray[Any]],
    frozen: Mapping[str, Mapping[str, NDArray[Any]]],
    learns: Collection[str],
) -> None:
    wanted = {f"{group}.{part}" for group in scales for part in ("phi", "psi")} | set(learns)
    problems = [Problem(path=name, message="is missing from the start") for name in sorted(wanted - trained.keys())]
    for group, parts in sorted(frozen.items()):
        if set(parts) != {"phi", "psi"}:
            problems.append(Problem(path=f"{group}.frozen", message="needs phi and psi"))
    for group in sorted(scales.keys()):
        phi, psi = trained.get(f"{group}.phi"), trained.get(f"{group}.psi")
        core = trained.get(f"{group}.core")
        if phi is not None and psi is not None and phi.shape != psi.shape[::-1]:
            problems.append(Problem(path=group, message="phi must be width×rank and psi rank×width", value=f"{phi.shape}, {psi.shape}"))
        if core is not None and psi is not None and core.shape != (psi.shape[0],) * 2:
            problems.append(Problem(path=f"{group}.core", message="must be rank×rank", value=str(core.shape)))
    if problems:
        raise InvalidTensors("the start is not whole", problems=problems)


def _check_controls(trained: Mapping[str, NDArray[Any]], controls: Mapping[str, NDArray[Any]], learns: Collection[str]) -> None:
    wanted = {name: name.rpartition(".")[0] for name in learns if is_control(name)}
    problems = [
        Problem(path=control, message="must be in the start, in the shape of what is trained")
        for control, name in sorted(wanted.items())
        if name not in controls or controls[name].shape != trained[name].shape
    ]
    surplus = sorted(controls.keys() - wanted.values())
    problems += [Problem(path=name, message="has a control variate that was not asked for") for name in surplus]
    if problems:
        raise InvalidTensors("the start's control variates are not what the offer says of them", problems=problems)


def begin_at(model: Any, start: Start) -> None:
    """Put ``start`` into a fresh adapter: its generators in place of the model's own, the frozen ones beside them.

    ``model`` is what :func:`workers.adaptation.adapt` returns; only what ``start.learns`` names wants gradients afterwards. Raises
    :class:`InvalidTensors` where the start is of another model.
    """
    weights = _weights_of(model, TRAINED)
    _check_fit(weights, start)
    for group, module in weights.items():
        _take(module, start.trained[f"{group}.phi"], start.trained[f"{group}.psi"])
    if start.frozen:
        _add_frozen(model, start)
    model.requires_grad_(requires_grad=False)
    for group, module in weights.items():
        core = start.trained.get(f"{group}.core")
        if core is not None:
            _put_core(module, core)
        for part, parameter in _parameters(module).items():
            parameter.requires_grad_(f"{group}.{part}" in start.learns)


def _check_fit(weights: Mapping[str, GeneratorWeights], start: Start) -> None:
    hint = "is the base model the one that the federation was begun with?"
    surplus = sorted(set(start.groups) - weights.keys())
    problems = [Problem(path=group, message="is a generator that the base model has no layers for", hint=hint) for group in surplus]
    for group, module in weights.items():
        phi = start.trained.get(f"{group}.phi")
        if phi is None or phi.shape != tuple(module.phi.shape):
            found = "missing" if phi is None else str(phi.shape)
            problems.append(Problem(path=group, message=f"must be {module.width} wide with rank {module.rank}", value=found, hint=hint))
    if problems:
        raise InvalidTensors("the start does not fit the base model", problems=problems)


def _weights_of(model: Any, adapter: str) -> dict[str, GeneratorWeights]:
    found = model.base_model.generators_of(adapter)
    return {key.replace("/", "."): module for key, module in sorted(found.items())}


def _take(module: GeneratorWeights, phi: NDArray[Any], psi: NDArray[Any]) -> None:
    like = module.psi
    factors = (torch.tensor(np.ascontiguousarray(array), dtype=like.dtype, device=like.device) for array in (phi, psi))
    module.take(Generator(phi=next(factors), psi=next(factors)))


def _add_frozen(model: Any, start: Start) -> None:
    plan = model.base_model.plans[TRAINED]
    names = {name: start.frozen[group.key] for name, group in plan.items() if group.key in start.frozen}
    beside = WeGeFTConfig(
        target_modules=sorted(names),
        rank_pattern={re.escape(name): generator.rank for name, generator in names.items()},
        alpha_pattern={re.escape(name): generator.scale * generator.rank for name, generator in names.items()},
        task_type=model.peft_config[TRAINED].task_type,
    )
    model.add_adapter(FROZEN, beside)
    for group, module in _weights_of(model, FROZEN).items():
        _take(module, start.frozen[group].phi, start.frozen[group].psi)
    model.base_model.set_adapter([TRAINED, FROZEN])


class _CoreTimes(nn.Module):
    """ψ as ``core @ psi``, of which the core alone is kept."""

    psi: Tensor

    def __init__(self, psi: Tensor) -> None:
        super().__init__()
        self.register_buffer("psi", psi.detach().clone(), persistent=False)

    def forward(self, core: Tensor) -> Tensor:
        return core @ self.psi


def _put_core(module: GeneratorWeights, core: NDArray[Any]) -> None:
    psi = module.psi
    module.psi = nn.Parameter(torch.tensor(np.ascontiguousarray(core), dtype=psi.dtype, device=psi.device))
    # Unsafe means that the shape changes, as it should: a core is rank×rank and ψ rank×width.
    parametrize.register_parametrization(module, "psi", _CoreTimes(psi), unsafe=True)


def _parameters(module: GeneratorWeights) -> dict[str, nn.Parameter]:
    if parametrize.is_parametrized(module, "psi"):
        parametrizations: Any = module.parametrizations
        return {"phi": module.phi, "core": parametrizations["psi"].original}
    return {"phi": module.phi, "psi": module.psi}


def moved_from(model: Any, start: Start) -> dict[str, NDArray[np.float64]]:
    """Return how far each tensor that learns has moved from the start, in float64."""
    return {
        name: parameter.detach().to("cpu", torch.float64).numpy() - start.trained[name].astype(np.float64)
        for name, parameter in learning_parameters(model, start).items()
    }


def learning_parameters(model: Any, start: Start) -> dict[str, nn.Parameter]:
    """Return what learns, each by its name in the start; ``model`` began there."""
    return {
        name: parameter
        for group, module in _weights_of(model, TRAINED).items()
        for part, parameter in _parameters(module).items()
        if (name := f"{group}.{part}") in start.learns
    }
