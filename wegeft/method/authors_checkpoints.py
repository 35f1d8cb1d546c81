"""Adapters that the authors' two code bases trained, as adapters of this package.

Both compute ``ΔW = s·(W Pᵀ) Q`` from two bias-free projections, P and Q (rank×width), so ``φ = Pᵀ`` and ``ψ = Q``:

- the wrapper of GIFT and of the vision code: ``in_projections.<target>.weight`` is P, ``out_projections.<target>.weight`` is Qᵀ, s = 1;
- the fork of PEFT: ``….wegeft_phi.weight`` is P and ``….wegeft_psi.weight`` is Q, held by one layer of each tied group, s = alpha / rank.

Source: github.com/savadikarc/gift, ``gift/gift/modeling_gift.py`` and ``peft/src/peft/tuners/wegeft/``.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors, Problem
from wegeft.method.config import WeGeFTConfig
from wegeft.method.export_folder import Export
from wegeft.method.foreign_generators import ForeignAdapter, ForeignGenerator, write_native
from wegeft.method.native_adapter import MODULE_PREFIX
from wegeft.method.sharing import target_names
from wegeft.method.tensor_files import read_tensors

_IN, _OUT, _BACKBONE = "in_projections.", "out_projections.", "backbone."
_CARRIED = (
    "target_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "task_type",
    "base_model_name_or_path",
    "revision",
)
"""What the fork's configuration says in the same words."""
_FORK_RANK, _FORK_ALPHA = 8, 8
_PHI, _PSI = ".wegeft_phi.weight", ".wegeft_psi.weight"


def import_gift(
    checkpoint: str | os.PathLike[str],
    base_model: nn.Module,
    out_dir: str | os.PathLike[str],
    *,
    targets: Mapping[str, Sequence[str]] | None = None,
) -> Export:
    """Write the adapter of a GIFT checkpoint (``.safetensors`` or ``.npz``) as a folder of this package; return its errors per layer.

    ``base_model``: the frozen backbone, as timm or transformers makes it. ``targets``: for a key of the checkpoint (``attn:proj``, or the
    module of a trained head) the ends of the names that it has in ``base_model``; by default the key itself with ``.`` for ``:``, and
    needed for ``shared_projection``. Only the published linear generator can be read: a checkpoint does not tell an activation between
    its projections from none.

    Raises ``FileExistsError`` if ``out_dir`` exists and is not an empty folder; ``InvalidTensors`` for a pickled file, or one whose
    tensors are not those of a linear generator; ``TargetsNotFound`` or ``InvalidAdapterConfig`` if they do not fit the base model.
    """
    tensors = {key.removeprefix("module."): tensor for key, tensor in read_tensors(Path(checkpoint)).items()}
    _check_gift(tensors)
    ends = _gift_ends(tensors, targets or {})
    whole = {_gift_name(key, targets or {}): tensor for key, tensor in tensors.items() if key.startswith(_BACKBONE)}
    config = _gift_config(ends, whole, base_model)
    names = target_names(base_model, WeGeFTConfig(**config))
    generators = tuple(
        ForeignGenerator(
            members=tuple(name for name in names if any(f".{name}".endswith(f".{end}") for end in chosen)),
            phi=tensors[f"{_IN}{key}.weight"].t(),
            psi=tensors[f"{_OUT}{key}.weight"].t(),
            scaling=1.0,
        )
        for key, chosen in ends.items()
    )
    return write_native(ForeignAdapter(config=config, generators=generators, whole=whole), base_model, Path(out_dir))


def _gift_config(ends: Mapping[str, Sequence[str]], whole: Mapping[str, Tensor], base_model: nn.Module) -> dict[str, Any]:
    return {
        "target_modules": sorted({end for chosen in ends.values() for end in chosen}),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
        "init_weights": "psi_zero",
        "base_model_name_or_path": getattr(base_model, "name_or_path", None) or None,
    }


def _gift_ends(tensors: Mapping[str, Tensor], targets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return, for each generator of the checkpoint, what the names of its layers end with."""
    keys = sorted(key.removeprefix(_IN).removesuffix(".weight") for key in tensors if key.startswith(_IN))
    return {key: sorted(targets.get(key, [key.replace(":", ".")])) for key in keys}


def _gift_name(key: str, targets: Mapping[str, Sequence[str]]) -> str:
    module, _, part = key.removeprefix(_BACKBONE).rpartition(".")
    return f"{next(iter(targets.get(module, [module])))}.{part}"


def _check_gift(tensors: Mapping[str, Tensor]) -> None:
    problems = []
    for key in sorted(tensors):
        other = key.replace(_IN, _OUT, 1) if key.startswith(_IN) else key.replace(_OUT, _IN, 1)
        if key.startswith((_IN, _OUT)) and key.endswith(".weight"):
            if other not in tensors:
                problems.append(Problem(path=key, message=f"has no partner {other}"))
        elif key.startswith((_IN, _OUT)):
            problems.append(Problem(path=key, message="projections with a bias are not linear in the weight"))
        elif not key.startswith(_BACKBONE):
            problems.append(Problem(path=key, message="is no part of a linear generator", hint="only projections and a head can be read"))
    if not any(key.startswith(_IN) for key in tensors):
        problems.append(Problem(message=f"holds no {_IN}<target>.weight", hint="give the 'state_dict' of a GIFT checkpoint"))
    if problems:
        raise InvalidTensors("the file is no GIFT checkpoint that can be read", problems=problems)


def import_peft_fork(folder: str | os.PathLike[str], base_model: nn.Module, out_dir: str | os.PathLike[str]) -> Export:
    """Write an adapter that the authors' fork of PEFT saved as a folder of this package; return its errors per layer.

    Groups are those of the fork: a layer belongs to the first ``tied_modules`` group with a pattern that matches the start of its name,
    else to itself; of a group, one layer holds the generator. Each layer's scale follows the fork's own look-up of patterns.

    Raises ``FileExistsError`` if ``out_dir`` exists and is not an empty folder; ``InvalidAdapterConfig`` for another method's folder, the
    output form (which fails in the fork), trained biases, or what does not fit the base model; ``InvalidTensors`` if weights are only
    there as a pickle, or are not those of the groups.
    """
    path = Path(folder)
    settings = _fork_settings(path)
    tensors = {key.removeprefix(MODULE_PREFIX): tensor for key, tensor in read_tensors(path / SAFETENSORS_WEIGHTS_NAME).items()}
    config = _fork_config(settings)
    names = target_names(base_model, WeGeFTConfig(**config))
    generators = tuple(_fork_generators(settings, names, tensors))
    whole = {key: tensor for key, tensor in tensors.items() if not key.endswith((_PHI, _PSI))}
    return write_native(ForeignAdapter(config=config, generators=generators, whole=whole), base_model, Path(out_dir))


def _fork_settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidAdapterConfig(f"the folder has no readable {CONFIG_NAME}", path=str(folder)) from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "WeGeFT":
        found = settings.get("peft_type") if isinstance(settings, dict) else None
        raise InvalidAdapterConfig("the folder is not of the authors' fork", path="peft_type", value=found, hint="it writes 'WeGeFT'")
    forms = settings.get("transform_dim") or "input"
    if set(forms.values() if isinstance(forms, dict) else [forms]) != {"input"}:
        raise InvalidAdapterConfig("the fork's output form cannot be read: it has no consistent shapes", path="transform_dim", value=forms)
    if settings.get("bias", "none") != "none":
        raise InvalidAdapterConfig("trained biases cannot be read", path="bias", value=settings["bias"])
    return settings


_CARRIED = (
    "target_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "task_type",
    "base_model_name_or_path",
    "revision",
)


def _fork_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    config = {name: settings.get(name) for name in _CARRIED}
    return config | {"weight_dropout": settings.get("wegeft_dropout") or 0.0, "init_weights": "phi_zero"}


def _fork_generators(settings: Mapping[str, Any], names: Sequence[str], tensors: Mapping[str, Tensor]) -> Iterator[ForeignGenerator]:
    groups = _fork_groups(settings.get("tied_modules") or [], names)
    problems = [Problem(path=key, message="belongs to no target layer") for key in _strays(tensors, names)]
    for members in groups:
        owners = [name for name in members if f"{name}{_PHI}" in tensors and f"{name}{_PSI}" in tensors]
        if len(owners) != 1:
            held = ", ".join(owners) or "none"
            problems.append(Problem(path=members[0], message="one layer of each tied group must hold φ and ψ", value=held))
    if problems:
        raise InvalidTensors("the tensors are not those of the tied groups", problems=problems)
    for members in groups:
        owner = next(name for name in members if f"{name}{_PHI}" in tensors)
        scaling = _fork_scaling(settings, members)
        yield ForeignGenerator(members=members, phi=tensors[f"{owner}{_PHI}"].t(), psi=tensors[f"{owner}{_PSI}"], scaling=scaling)


def _strays(tensors: Mapping[str, Tensor], names: Sequence[str]) -> list[str]:
    known = {f"{name}{part}" for name in names for part in (_PHI, _PSI)}
    return sorted(key for key in tensors if key.endswith((_PHI, _PSI)) and key not in known)


def _fork_groups(tied: Sequence[Sequence[str]], names: Sequence[str]) -> list[tuple[str, ...]]:
    groups: dict[object, list[str]] = {}
    for name in names:
        try:
            first = next((index for index, patterns in enumerate(tied) if any(re.match(pattern, name) for pattern in patterns)), name)
        except re.error as error:
            raise InvalidAdapterConfig("not a regular expression", path="tied_modules", value=error.pattern) from error
        groups.setdefault(first, []).append(name)
    return [tuple(members) for members in groups.values()]


def _fork_scaling(settings: Mapping[str, Any], members: Sequence[str]) -> float:
    ranks, alphas = settings.get("rank_pattern") or {}, settings.get("alpha_pattern") or {}
    found = set()
    for name in members:
        # The fork looks both up by the pattern of the rank.
        key = next((pattern for pattern in ranks if re.match(rf".*\.{pattern}$", name)), name)
        found.add(alphas.get(key, settings.get("wegeft_alpha", _FORK_ALPHA)) / ranks.get(key, settings.get("r", _FORK_RANK)))
    if len(found) > 1:
        raise InvalidAdapterConfig("the layers of one tied group differ in alpha / rank", path=members[0], value=sorted(found))
    return float(found.pop())
