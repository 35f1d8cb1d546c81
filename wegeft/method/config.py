"""What a person chooses about a WeGeFT adapter."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft.config import PeftConfig

from wegeft.contracts.errors import InvalidAdapterConfig, Problem
from wegeft.method.registration import WEGEFT

Transform = Literal["input", "output"]
Sharing = Literal["type", "layer", "width"]
Initialisation = Literal["phi_zero", "psi_zero", "orthogonal"]


@dataclass
class WeGeFTConfig(PeftConfig):  # type: ignore[misc] # PEFT is untyped
    """Edit frozen linear layers by a generator that many of them share: ``W' = W (I + s·φψ)`` with ``s = wegeft_alpha / r``.

    Defaults are the published language settings (r = 64, s = 2, φ zero, ψ Kaiming, one generator per module type).
    Raises ``InvalidAdapterConfig`` with every problem at once.

    Source: WeGeFT, ICML 2025, arXiv 2312.00700, and the authors' released configurations.
    """

    r: int = field(default=64, metadata={"help": "Rank of each generator; φ is width×r and ψ is r×width."})
    wegeft_alpha: float = field(default=128.0, metadata={"help": "Numerator of the scale s = wegeft_alpha / r."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": "Names (suffixes) of the linear layers to edit, a regular expression, or 'all-linear'; None: as LoRA's default."},
    )
    exclude_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "Names or an expression to leave out."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Indices of the blocks to edit; None: all."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the block list that the indices count."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained in full and stored beside the generators."})
    tied_modules: Sharing | list[list[str]] = field(
        default="type",
        metadata={
            "help": "Which layers share one generator: 'type' (all layers of a module type), 'layer' (none), 'width' (all of one width), "
            "or groups of patterns, each a suffix or a regular expression of module names; layers in no group are shared by type."
        },
    )
    transform: Transform = field(
        default="input", metadata={"help": "'input': W (I + s·φψ), on what the layer reads; 'output': (I + s·φψ) W, on what it writes."}
    )
    init_weights: Initialisation = field(
        default="phi_zero",
        metadata={"help": "'phi_zero': φ = 0, ψ Kaiming; 'psi_zero': ψ = 0, φ Kaiming; 'orthogonal': φ = 0, rows of ψ orthonormal."},
    )
    weight_dropout: float = field(
        default=0.0, metadata={"help": "Probability of dropping an entry of the frozen weight that φ sees while training, as published."}
    )
    input_dropout: float = field(default=0.0, metadata={"help": "Probability of dropping an entry of what ψ reads while training."})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Rank by module pattern; equal within a sharing group."})
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "wegeft_alpha by module pattern; equal within a sharing group."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = WEGEFT
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        problems = _problems(self)
        if problems:
            raise InvalidAdapterConfig("the WeGeFT configuration is not valid", problems=problems)
        self.wegeft_alpha = float(self.wegeft_alpha)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, with sets sorted so that equal configurations are equal bytes."""
        return {key: sorted(value) if isinstance(value, set) else value for key, value in super().to_dict().items()}


def _problems(config: WeGeFTConfig) -> list[Problem]:
    problems = [*_rank_problems(config), *_choice_problems(config), *_sharing_problems(config.tied_modules)]
    for name in ("weight_dropout", "input_dropout"):
        value = getattr(config, name)
        if not _is_number(value) or not 0 <= value < 1:
            problems.append(_problem(name, "must be at least 0 and less than 1", value))
    if config.layers_to_transform is not None and isinstance(config.target_modules, str) and config.target_modules != "all-linear":
        problems.append(_problem("layers_to_transform", "needs target_modules as a list of names, not a regular expression", None))
    if config.layers_pattern and config.layers_to_transform is None:
        problems.append(_problem("layers_pattern", "has no effect without layers_to_transform", config.layers_pattern))
    return problems


def _rank_problems(config: WeGeFTConfig) -> list[Problem]:
    ranks: dict[str, object] = {"r": config.r}
    alphas: dict[str, object] = {"wegeft_alpha": config.wegeft_alpha}
    problems = []
    for name, found, target in (("rank_pattern", config.rank_pattern, ranks), ("alpha_pattern", config.alpha_pattern, alphas)):
        if not isinstance(found, Mapping):
            problems.append(_problem(name, "must map module patterns to numbers", found))
        else:
            target.update({f"{name}[{pattern}]": value for pattern, value in found.items()})
    problems += [_problem(at, "must be a whole number of at least 1", v) for at, v in ranks.items() if not _is_whole(v)]
    problems += [_problem(at, "must be a positive number", v) for at, v in alphas.items() if not _is_positive(v)]
    return problems


def _choice_problems(config: WeGeFTConfig) -> list[Problem]:
    choices = (("transform", Transform), ("init_weights", Initialisation))
    return [
        _problem(name, f"must be one of {', '.join(get_args(allowed))}", getattr(config, name))
        for name, allowed in choices
        if getattr(config, name) not in get_args(allowed)
    ]


def _sharing_problems(tied: object) -> list[Problem]:
    if isinstance(tied, str):
        return [] if tied in get_args(Sharing) else [_problem("tied_modules", f"must be {', '.join(get_args(Sharing))} or groups", tied)]
    if not isinstance(tied, list) or not all(isinstance(group, list) and group for group in tied):
        return [_problem("tied_modules", "must be a list of groups, each a non-empty list of patterns", tied)]
    return [
        _problem(f"tied_modules[{index}]", "patterns must be strings", group)
        for index, group in enumerate(tied)
        if not all(isinstance(pattern, str) for pattern in group)
    ]


def _problem(path: str, message: str, value: object) -> Problem:
    return Problem(path=path, message=message, value=None if value is None else repr(value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
