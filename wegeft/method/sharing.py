"""Which layers share which generator: the plan that is made, and checked, before a model is touched."""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from wegeft.contracts.errors import InvalidAdapterConfig, Problem, TargetsNotFound
from wegeft.method.config import WeGeFTConfig
from wegeft.method.targets import Targets, features_of, is_all_linear, named_layers, resolve_targets, type_names


@dataclass(frozen=True, kw_only=True)
class Group:
    """The layers that share one generator, and its size."""

    key: str
    """Names the generator in files: a module type, a layer, ``width576``, or joined types; stable across target choices."""
    members: tuple[str, ...]
    """Names of the layers, sorted."""
    width: int
    """Length of the vectors that the generator edits: in_features for the input form, out_features for the output form."""
    rank: int
    alpha: float

    @property
    def scaling(self) -> float:
        """The scale s = alpha / rank."""
        return self.alpha / self.rank

    @property
    def parameters(self) -> int:
        """Trainable numbers: φ and ψ, 2·rank·width."""
        return 2 * self.rank * self.width


def plan_groups(model: nn.Module, config: WeGeFTConfig) -> list[Group]:
    """Return the generators that ``config`` asks for on ``model``, sorted by key; the model is not changed.

    Raises ``TargetsNotFound``, or ``InvalidAdapterConfig`` for a group of unequal width, rank or alpha, a layer in two groups, or a
    group or pattern that matches no target; all at once.
    """
    members = _members_by_key(model, config)
    layers = dict(named_layers(model))
    groups, problems = [], list[Problem]()
    for key, names in sorted(members.items()):
        widths = {name: features_of(layers[name])[0 if config.transform == "input" else 1] for name in names}
        ranks = {name: _by_pattern(config.rank_pattern, name, config.r) for name in names}
        alphas = {name: _by_pattern(config.alpha_pattern, name, config.wegeft_alpha) for name in names}
        for what, values in (("width", widths), ("rank", ranks), ("alpha", alphas)):
            problems += _unequal(key, what, values)
        first = names[0]
        groups.append(Group(key=key, members=tuple(names), width=widths[first], rank=int(ranks[first]), alpha=float(alphas[first])))
    problems += _unused_patterns(config, [name for names in members.values() for name in names])
    if problems:
        raise InvalidAdapterConfig("the sharing groups do not fit the base model", problems=problems)
    return groups


def target_names(model: nn.Module, config: WeGeFTConfig) -> list[str]:
    """Return the sorted names of the layers that ``config`` edits, after exclusions and layer indices.

    Raises ``TargetsNotFound`` or ``InvalidAdapterConfig``.
    """
    targets = _targets_of(model, config)
    names = resolve_targets(model, targets)
    if is_all_linear(targets):
        # PEFT counts block indices only for suffixes, and would take every layer that is named in full.
        kept = [name for name in names if check_target_module_exists(_with_targets(config, {name.rpartition(".")[2]}), name)]
    else:
        kept = [name for name in names if check_target_module_exists(_with_targets(config, targets), name)]
    if not kept:
        raise TargetsNotFound("exclude_modules, modules_to_save or layers_to_transform leave no layer to edit", path="target_modules")
    return kept


def _targets_of(model: nn.Module, config: WeGeFTConfig) -> Targets:
    if config.target_modules is not None:
        return config.target_modules
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    if default is None:
        raise InvalidAdapterConfig(
            "target_modules must be given: there is no default for this architecture", path="target_modules", value=model_type
        )
    return default if isinstance(default, str) else set(default)


def _with_targets(config: WeGeFTConfig, targets: Targets) -> WeGeFTConfig:
    changed = copy.copy(config)
    changed.target_modules = targets if isinstance(targets, str) else set(targets)
    return changed


def _members_by_key(model: nn.Module, config: WeGeFTConfig) -> dict[str, list[str]]:
    names = target_names(model, config)
    key_of = _key_function(model, config, names)
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(key_of(name), []).append(name)
    return members


def _key_function(model: nn.Module, config: WeGeFTConfig, names: list[str]) -> Callable[[str], str]:
    types = type_names(model)
    if config.tied_modules == "layer":
        return lambda name: name
    if config.tied_modules == "width":
        layers = dict(named_layers(model))
        return lambda name: f"width{features_of(layers[name])[0 if config.transform == 'input' else 1]}"
    if config.tied_modules == "type":
        return lambda name: types[name]
    keys = _explicit_keys(config.tied_modules, names, types)
    return lambda name: keys.get(name, types[name])


def _explicit_keys(tied: list[list[str]], names: list[str], types: Mapping[str, str]) -> dict[str, str]:
    groups = [[name for name in names if any(matches(pattern, name) for pattern in patterns)] for patterns in tied]
    problems = [
        Problem(path=f"tied_modules[{index}]", message="matches no target module", value=repr(tied[index]))
        for index, members in enumerate(groups)
        if not members
    ]
    owners: dict[str, int] = {}
    for index, members in enumerate(groups):
        again = [name for name in members if name in owners]
        problems += [Problem(path=f"tied_modules[{index}]", message=f"{name} is in an earlier group too") for name in again]
        owners.update(dict.fromkeys(members, index))
    if problems:
        raise InvalidAdapterConfig("the sharing groups are not valid", problems=problems)
    taken = {types[name] for name in names if name not in owners}
    keys = {}
    for index, members in enumerate(groups):
        joined = "+".join(sorted({types[name] for name in members}))
        key = f"{joined}@{index + 1}" if joined in taken else joined
        taken.add(key)
        keys.update(dict.fromkeys(members, key))
    return keys


def matches(pattern: str, name: str) -> bool:
    """Say whether a pattern, a suffix or a regular expression, matches the whole name or its end after a dot."""
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None


def _by_pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    return next((value for pattern, value in patterns.items() if matches(pattern, name)), default)


def _unequal(key: str, what: str, values: Mapping[str, float]) -> list[Problem]:
    if len(set(values.values())) == 1:
        return []
    shown = ", ".join(f"{name}: {value}" for name, value in list(values.items())[:4])
    hint = "layers share a generator only if it fits them all: split the group in tied_modules, or give one pattern for the whole group"
    return [Problem(path=key, message=f"the layers of one group differ in {what}", value=shown, hint=hint)]


def _unused_patterns(config: WeGeFTConfig, names: list[str]) -> list[Problem]:
    return [
        Problem(path=field, message="pattern matches no target module", value=pattern)
        for field, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern))
        for pattern in patterns
        if not any(matches(pattern, name) for name in names)
    ]
