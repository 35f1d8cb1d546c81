"""Generators that other code made, written as an adapter of this package that computes the same."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors, Problem, WegeftError
from wegeft.method.config import WeGeFTConfig
from wegeft.method.export_folder import Export, check_errors, check_free, write_folder
from wegeft.method.low_rank import Factors, relative_error
from wegeft.method.native_adapter import GENERATOR_PREFIX, MODULE_PREFIX, read_adapter
from wegeft.method.sharing import Group, plan_groups

_ERROR_LIMIT = 1e-6
"""Numbers are carried over as they are; only products of scales are rounded."""


@dataclass(frozen=True, kw_only=True)
class ForeignGenerator:
    """One pair (φ, ψ), the scale of its product and the layers that it edits, in the input form."""

    members: tuple[str, ...]
    phi: Tensor
    """width×rank."""
    psi: Tensor
    """rank×width."""
    scaling: float

    @property
    def rank(self) -> int:
        return int(self.psi.shape[0])


@dataclass(frozen=True, kw_only=True)
class ForeignAdapter:
    """Everything that another adapter changes in a base model."""

    config: Mapping[str, Any]
    """Fields of ``WeGeFTConfig``, without ranks, scales and sharing, which follow from the generators."""
    generators: tuple[ForeignGenerator, ...]
    whole: Mapping[str, Tensor]
    """Tensors that replace the base model's, by name."""


def write_native(adapter: ForeignAdapter, base: nn.Module, out: Path) -> Export:
    """Write the adapter as a folder, read it back on ``base``, and return each layer's error against its own formula in float64.

    Raises ``FileExistsError``, ``InvalidTensors`` or ``InvalidAdapterConfig``.
    """
    check_free(out)
    _check_shapes(adapter.generators)
    _check_whole(adapter)
    config = _config_of(adapter, base)
    groups = plan_groups(base, config)
    tensors = {f"{MODULE_PREFIX}{name}": tensor.contiguous() for name, tensor in adapter.whole.items()}
    for group, generator in zip(groups, _matching(groups, adapter.generators), strict=True):
        tensors[f"{GENERATOR_PREFIX}{group.key}.phi"] = generator.phi.contiguous()
        tensors[f"{GENERATOR_PREFIX}{group.key}.psi"] = generator.psi.contiguous()
    errors: dict[str, float] = {}

    def write(folder: Path) -> None:
        save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config.save_pretrained(str(folder))
        errors.update(_measure(folder, base, adapter.generators))
        check_errors(errors, _ERROR_LIMIT)

    write_folder(out, write)
    return Export(path=out, dtype="+".join(sorted({str(g.phi.dtype).removeprefix("torch.") for g in adapter.generators})), errors=errors)


def _check_shapes(generators: Sequence[ForeignGenerator]) -> None:
    problems = []
    for generator in generators:
        shapes = tuple(generator.phi.shape), tuple(generator.psi.shape)
        if not generator.members:
            problems.append(Problem(message="a generator edits no layer of the base model", value=f"φ {shapes[0]}, ψ {shapes[1]}"))
        elif len(shapes[0]) != 2 or shapes[0][::-1] != shapes[1]:
            problems.append(Problem(path=generator.members[0], message="φ and ψ have no common rank and width", value=str(shapes)))
    if problems:
        raise InvalidTensors("the checkpoint's generators are not usable", problems=problems)


def _check_whole(adapter: ForeignAdapter) -> None:
    modules = tuple(adapter.config.get("modules_to_save") or ())
    strays = [name for name in sorted(adapter.whole) if not _is_inside(name, modules)]
    if strays:
        hint = "leave them out of the file if they equal the base model's, as resized embeddings may"
        problems = [Problem(path=name, message="is neither a generator nor of modules_to_save", hint=hint) for name in strays]
        raise InvalidTensors("the checkpoint holds tensors that an adapter does not", problems=problems)


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(f".{name}".startswith(f".{module}.") or f".{module}." in f".{name}" for module in modules)


def _config_of(adapter: ForeignAdapter, base: nn.Module) -> WeGeFTConfig:
    """Return a configuration whose plan on ``base`` has just the generators of the adapter; the simplest sharing that does."""
    rank = Counter(generator.rank for generator in adapter.generators).most_common(1)[0][0]
    alpha = Counter(generator.scaling * generator.rank for generator in adapter.generators).most_common(1)[0][0]
    fields = dict(adapter.config) | {"r": rank, "wegeft_alpha": alpha, "rank_pattern": {}, "alpha_pattern": {}, "inference_mode": True}
    for generator in adapter.generators:
        names = [re.escape(name) for name in generator.members]
        fields["rank_pattern"] |= dict.fromkeys(names, generator.rank) if generator.rank != rank else {}
        own_alpha = generator.scaling * generator.rank
        fields["alpha_pattern"] |= dict.fromkeys(names, own_alpha) if own_alpha != alpha else {}
    wanted = {frozenset(generator.members) for generator in adapter.generators}
    explicit = [[re.escape(name) for name in sorted(members)] for members in sorted(wanted, key=min)]
    for tied in ("type", "layer", "width"):
        config = WeGeFTConfig(**fields, tied_modules=tied)
        if _partition(base, config) == wanted:
            return config
    return WeGeFTConfig(**fields, tied_modules=explicit)


def _partition(base: nn.Module, config: WeGeFTConfig) -> set[frozenset[str]] | None:
    try:
        return {frozenset(group.members) for group in plan_groups(base, config)}
    except WegeftError:
        return None


def _matching(groups: Sequence[Group], generators: Sequence[ForeignGenerator]) -> list[ForeignGenerator]:
    """Return the generator of each group."""
    by_members = {frozenset(generator.members): generator for generator in generators}
    matching = [by_members.get(frozenset(group.members)) for group in groups]
    problems = []
    for group, generator in zip(groups, matching, strict=True):
        shape = None if generator is None else tuple(generator.psi.shape)
        if shape != (group.rank, group.width):
            problems.append(Problem(path=group.key, message=f"needs ψ of shape {(group.rank, group.width)}", value=str(shape)))
    if problems:
        raise InvalidAdapterConfig("the generators do not fit the base model", problems=problems)
    return [generator for generator in matching if generator is not None]


def _measure(folder: Path, base: nn.Module, generators: Sequence[ForeignGenerator]) -> dict[str, float]:
    owners = {name: generator for generator in generators for name in generator.members}
    errors = {}
    for edit in read_adapter(folder, base).edits():
        own = owners[edit.name]
        phi, psi = (part.double().cpu().numpy() for part in (own.phi, own.psi))
        exact = Factors(up=own.scaling * (edit.weight.numpy() @ phi), down=psi)
        errors[edit.name] = relative_error(edit.factors(), exact)
    return errors
