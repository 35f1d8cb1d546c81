"""The ``adapter_config.json`` that a version may hold: what our workers write, and nothing that could run or hang a reader."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hub.published_baselines import BASELINES, kind_of
from hub.published_fields import Alpha, ModuleName, ModuleNames, PlainText, Probability, PublishedBaseline, Rank, TaskKind
from wegeft.contracts.errors import Problem, shorten


class PublishedConfig(BaseModel):
    """A WeGeFT adapter's configuration as it lies in a version."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    peft_type: Literal["WEGEFT"]
    r: Rank
    wegeft_alpha: Alpha
    target_modules: ModuleNames
    base_model_name_or_path: PlainText | None
    exclude_modules: ModuleNames | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: ModuleName | ModuleNames | None = None
    modules_to_save: ModuleNames | None = None
    tied_modules: Literal["type", "layer", "width"] | Annotated[list[ModuleNames], Field(max_length=20_000)] = "type"
    transform: Literal["input", "output"] = "input"
    init_weights: Literal["phi_zero", "psi_zero", "orthogonal"] = "phi_zero"
    weight_dropout: Probability = 0.0
    input_dropout: Probability = 0.0
    rank_pattern: dict[ModuleName, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[ModuleName, Alpha] = Field(default_factory=dict)
    task_type: TaskKind | None = None
    revision: PlainText | None = None
    peft_version: PlainText | None = None
    inference_mode: bool = True
    auto_mapping: None = None

    @property
    def ranks(self) -> frozenset[int]:
        """Every rank that a generator may have."""
        return frozenset({self.r, *self.rank_pattern.values()})


def check_config(config: dict[str, Any]) -> PublishedConfig | PublishedBaseline | list[Problem]:
    """Return the configuration, of our method or of one of PEFT's on the list, or everything that is wrong with it."""
    kind = kind_of(config) or PublishedConfig
    if kind is PublishedConfig and isinstance(config.get("peft_type"), str) and config["peft_type"] != "WEGEFT":
        hint = f"one of: WEGEFT, {', '.join(BASELINES)}"
        return [Problem(path="peft_type", message="not a method that this hub serves", value=shorten(config["peft_type"]), hint=hint)]
    try:
        return kind.model_validate(config)
    except ValidationError as error:
        return [_problem(dict(item)) for item in error.errors(include_url=False, include_context=False)]


def _problem(item: dict[str, Any]) -> Problem:
    path = ".".join(shorten(step if str(step).isprintable() else ascii(step)) for step in item["loc"])
    hint = "this hub does not serve such a field" if item["type"] == "extra_forbidden" else None
    return Problem(path=path, message=str(item["msg"]), value=None if item["type"] == "missing" else shorten(item["input"]), hint=hint)
