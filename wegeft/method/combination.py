"""New adapters from weighted sums of old ones, in the space of products, where sums mean something."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method.config import WeGeFTConfig
from wegeft.method.generator import Generator, truncate, weighted_sum
from wegeft.method.sharing import Group, plan_groups

Combination = Literal["cat", "svd"]
"""``cat``: exact, ranks add up; ``svd``: cut back to one rank, with the least error in ‖M‖. The names are PEFT's."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One adapter of a sum."""

    config: WeGeFTConfig
    generators: Mapping[str, Generator[Tensor]]
    """By group."""
    groups: Mapping[str, Group]
    weight: float


def combine(
    parts: Sequence[Part], model: nn.Module, how: Combination, rank: int | None
) -> tuple[WeGeFTConfig, dict[str, Generator[Tensor]]]:
    """Return the configuration and the generators of ``Σ wᵢ Mᵢ``; see the two functions below for what they raise."""
    _check_alike(parts)
    generators = combined_generators(parts, how, rank)
    return combined_config(parts, generators, model), generators


def combined_generators(parts: Sequence[Part], how: Combination, rank: int | None) -> dict[str, Generator[Tensor]]:
    """Return ``Σ wᵢ Mᵢ`` by group; an adapter without a group counts as zero there. ``rank``: for ``svd``, else the largest of the parts.

    Raises ``InvalidAdapterConfig`` for an unknown way to combine, or a rank given with ``cat``, which keeps all ranks.
    """
    if how not in get_args(Combination):
        hint = "the factors of generators cannot be added; their products can"
        raise InvalidAdapterConfig(f"combination_type must be {' or '.join(get_args(Combination))}", value=how, hint=hint)
    if how == "cat" and rank is not None:
        raise InvalidAdapterConfig("svd_rank has no effect with combination_type='cat'", path="svd_rank", value=rank)
    combined = {}
    for key in sorted({key for part in parts for key in part.generators}):
        present = [part for part in parts if key in part.generators]
        total = weighted_sum([part.generators[key] for part in present], [part.weight for part in present])
        if how == "svd":
            total = truncate(total, rank or max(part.generators[key].rank for part in present)).generator
        combined[key] = total
    return combined


def combined_config(parts: Sequence[Part], generators: Mapping[str, Generator[Tensor]], model: nn.Module) -> WeGeFTConfig:
    """Return the configuration of the sum: the union of the targets, each group of its own rank, s = 1.

    Raises ``InvalidAdapterConfig`` if the adapters differ in what they edit or in which layers share a generator, or train other modules.
    """
    members = _joint_members(parts)
    ranks = {key: generator.rank for key, generator in generators.items()}
    config = copy.deepcopy(parts[0].config)
    config.target_modules = {name for names in members.values() for name in names}
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.r = max(ranks.values())
    config.wegeft_alpha = float(config.r)
    config.rank_pattern = {"|".join(map(re.escape, members[key])): rank for key, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = {pattern: float(rank) for pattern, rank in config.rank_pattern.items()}
    config.weight_dropout = config.input_dropout = 0.0
    planned = {group.key: group.members for group in plan_groups(model, config)}
    if planned != members:
        raise InvalidAdapterConfig("the adapters' sharing groups cannot be expressed together", path="tied_modules")
    return config


def _check_alike(parts: Sequence[Part]) -> None:
    if len({part.config.transform for part in parts}) > 1:
        raise InvalidAdapterConfig("input and output forms cannot be summed into one adapter", path="transform")
    if any(part.config.tied_modules != parts[0].config.tied_modules for part in parts):
        raise InvalidAdapterConfig("adapters that share generators differently cannot be summed", path="tied_modules")
    if any(part.config.modules_to_save for part in parts):
        raise InvalidAdapterConfig("adapters that train whole modules cannot be summed", path="modules_to_save")


def _joint_members(parts: Sequence[Part]) -> dict[str, tuple[str, ...]]:
    members: dict[str, tuple[str, ...]] = {}
    for part in parts:
        for key, group in part.groups.items():
            if members.setdefault(key, group.members) != group.members:
                raise InvalidAdapterConfig(f"the adapters share generator {key} among different layers", path="target_modules")
    return members
