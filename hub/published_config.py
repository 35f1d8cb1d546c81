"""The ``adapter_config.json`` that a version may hold: what ``wegeft.method`` writes, and nothing that could run or hang a reader."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wegeft.contracts.errors import Problem, shorten

ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,499}\z")]
"""A plain name: readers of a configuration take names for regular expressions, and one from outside could keep them busy for ever."""
ModuleNames = Annotated[list[ModuleName], Field(min_length=1, max_length=20_000)]
Rank = Annotated[int, Field(ge=1, le=65_536)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]
PlainText = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,4200}\z")]


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
    modules_to_save: None = None
    tied_modules: Literal["type", "layer", "width"] | Annotated[list[ModuleNames], Field(max_length=20_000)] = "type"
    transform: Literal["input", "output"] = "input"
    init_weights: Literal["phi_zero", "psi_zero", "orthogonal"] = "phi_zero"
    weight_dropout: Probability = 0.0
    input_dropout: Probability = 0.0
    rank_pattern: dict[ModuleName, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[ModuleName, Alpha] = Field(default_factory=dict)
    task_type: PlainText | None = None
    revision: PlainText | None = None
    peft_version: PlainText | None = None
    inference_mode: bool = True
    auto_mapping: None = None

    @property
    def ranks(self) -> frozenset[int]:
        """Every rank that a generator may have."""
        return frozenset({self.r, *self.rank_pattern.values()})


def check_config(config: dict[str, Any]) -> PublishedConfig | list[Problem]:
    """Return the configuration, or everything that is wrong with it."""
    try:
        return PublishedConfig.model_validate(config)
    except ValidationError as error:
        return [_problem(dict(item)) for item in error.errors(include_url=False, include_context=False)]


def _problem(item: dict[str, Any]) -> Problem:
    path = ".".join(shorten(step if str(step).isprintable() else ascii(step)) for step in item["loc"])
    hint = "this hub does not serve such a field" if item["type"] == "extra_forbidden" else None
    return Problem(path=path, message=str(item["msg"]), value=None if item["type"] == "missing" else shorten(item["input"]), hint=hint)
