"""Which layers of a base model an adapter edits, and what they are called."""

import difflib
import re
from collections.abc import Collection, Iterator

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import resolve_quantization_backend
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND, SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers.pytorch_utils import Conv1D

from wegeft.contracts.errors import InvalidAdapterConfig, Problem, TargetsNotFound

Targets = Collection[str] | str
"""Names (suffixes), one regular expression, or 'all-linear'."""


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) of every module of the base model, seeing through adapter layers that already wrap some of them."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside.append(f"{name}.")
            yield name, module.get_base_layer()
        else:
            yield name, module


def is_linear(module: nn.Module) -> bool:
    """Say whether a module maps ``in_features`` to ``out_features`` linearly: Linear, Conv1D or a quantised stand-in for one."""
    if isinstance(module, nn.Linear | Conv1D):
        return True
    if isinstance(module, nn.Bilinear):
        return False
    if isinstance(getattr(module, "in_features", None), int) and isinstance(getattr(module, "out_features", None), int):
        return True
    return resolve_quantization_backend(module) is not None


def features_of(module: nn.Module) -> tuple[int, int]:
    """Return (in_features, out_features) of a linear layer, quantised or not."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.nf)
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type] # is_linear saw integers


def type_names(model: nn.Module) -> dict[str, str]:
    """Return the module type of each linear layer: the shortest end of its path, indices as ``*``, that no other type ends with.

    ``model.layers.7.self_attn.q_proj`` is of type ``q_proj``; BERT's two ``output.dense`` are ``attention.output.dense`` and
    ``layer.*.output.dense``. The names depend on the base model alone, never on what is targeted, so they can name stored tensors.
    """
    paths = {name: _starred(name) for name, module in named_layers(model) if is_linear(module)}
    owners: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for path in set(paths.values()):
        for start in range(len(path)):
            owners.setdefault(path[start:], set()).add(path)
    return {name: ".".join(_shortest_own_suffix(path, owners)) for name, path in paths.items()}


def _starred(name: str) -> tuple[str, ...]:
    return tuple("*" if part.isdigit() else part for part in name.split("."))


def _shortest_own_suffix(path: tuple[str, ...], owners: dict[tuple[str, ...], set[tuple[str, ...]]]) -> tuple[str, ...]:
    for start in range(len(path) - 1, -1, -1):
        if len(owners[path[start:]]) == 1 and path[start] != "*":
            return path[start:]
    return path


def is_all_linear(target_modules: Targets | None) -> bool:
    """Say whether the targets are PEFT's shorthand for every linear layer."""
    return isinstance(target_modules, str) and target_modules.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND


def resolve_targets(model: nn.Module, target_modules: Targets) -> list[str]:
    """Return the sorted names of the layers that ``target_modules`` selects.

    ``'all-linear'`` is every linear layer except output embeddings and classification heads. A string is a regular expression for
    the whole name. In a list, each entry is a name or the end of one.

    Raises ``TargetsNotFound`` if any entry matches nothing, with the available module types and the nearest ones;
    ``InvalidAdapterConfig`` if a selected module is not a linear layer that can be edited.
    """
    layers = dict(named_layers(model))
    if is_all_linear(target_modules):
        heads = _head_names(model)
        linear = {name for name, module in layers.items() if is_linear(module) and not _is_inside_attention(name, layers)}
        chosen = linear - heads
        if not chosen:
            raise TargetsNotFound("the model has no linear layers to edit", path="target_modules")
        return sorted(chosen)
    if isinstance(target_modules, str):
        chosen = {name for name in layers if re.fullmatch(target_modules, name)}
        missing = [] if chosen else [target_modules]
    else:
        found = {target: _ending_with(target, layers) for target in sorted(target_modules)}
        chosen = {name for names in found.values() for name in names}
        missing = [target for target, names in found.items() if not names]
    if missing or not chosen:
        raise _not_found(missing, model)
    _check_editable(chosen, layers)
    return sorted(chosen)


def _ending_with(target: str, names: Collection[str]) -> list[str]:
    return [name for name in names if name == target or name.endswith(f".{target}")]


def _head_names(model: nn.Module) -> set[str]:
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    if isinstance(output, BaseTunerLayer):
        output = output.get_base_layer()
    if output is not None:
        return {name for name, module in named_layers(model) if module is output}
    heads = tuple(head for head in SEQ_CLS_HEAD_NAMES if hasattr(model, head))
    return {name for name, _ in named_layers(model) if name in heads or name.startswith(tuple(f"{head}." for head in heads))}


def _is_inside_attention(name: str, layers: dict[str, nn.Module]) -> bool:
    return isinstance(layers.get(name.rpartition(".")[0]), nn.MultiheadAttention)


def _check_editable(names: Collection[str], layers: dict[str, nn.Module]) -> None:
    problems = []
    for name in sorted(names):
        if not is_linear(layers[name]):
            kind = type(layers[name]).__name__
            problems.append(Problem(path=name, message=f"{kind} cannot be edited", hint="target Linear or Conv1D layers"))
        elif _is_inside_attention(name, layers):
            problems.append(Problem(path=name, message="torch's MultiheadAttention reads this weight without calling the layer"))
    if problems:
        raise InvalidAdapterConfig("some target modules cannot be edited", problems=problems)


def _not_found(missing: list[str], model: nn.Module) -> TargetsNotFound:
    available = sorted(set(type_names(model).values()))
    problems = []
    for target in missing:
        near = difflib.get_close_matches(target, available, n=1, cutoff=0.5)
        hint = (f"did you mean {near[0]!r}? " if near else "") + f"available: {', '.join(available)}"
        problems.append(Problem(path="target_modules", message="matches no layer of the base model", value=target, hint=hint))
    return TargetsNotFound("some target modules match no layer of the base model", problems=problems)
