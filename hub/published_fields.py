"""What the configurations of published adapters have in common, whatever their method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from hub.tensor_layout import Layout

ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,499}\z")]
"""A plain name: readers of a configuration take names for regular expressions, and one from outside could keep them busy for ever."""
ModuleNames = Annotated[list[ModuleName], Field(min_length=1, max_length=20_000)]
Rank = Annotated[int, Field(ge=1, le=65_536)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]
PlainText = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]{1,4200}\z")]
"""Nothing in it steers a terminal, or shows letters in another order than they stand in."""
Size = Annotated[int, Field(ge=1, le=1 << 24)]
TaskKind = Literal["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"]
"""PEFT's closed list: it reads no configuration that names another."""
Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]


class PublishedBaseline(BaseModel):
    """An adapter of one of PEFT's own methods.

    What PEFT would import, download or compute on account of a configuration is refused: of the fields that a method does not name, every
    one must be empty, as PEFT writes what was not asked for.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    layout: ClassVar[Layout]

    target_modules: ModuleNames
    base_model_name_or_path: PlainText | None
    modules_to_save: ModuleNames | None = None
    bias: Literal["none"] = "none"
    fan_in_fan_out: bool = False
    init_weights: Literal[True] = True
    task_type: TaskKind | None = None
    revision: PlainText | None = None
    peft_version: PlainText | None = None
    inference_mode: bool = True

    @model_validator(mode="before")
    @classmethod
    def _others_are_empty(cls, data: dict[str, Any]) -> dict[str, Any]:
        for name, value in data.items():
            if name not in cls.model_fields and not name.isidentifier():
                raise ValueError(f"{name[:100]!r} is not the name of a field")
            if name not in cls.model_fields and value not in (None, False, 0, "", [], {}):
                raise ValueError(f"{name[:100]!r} must be empty: this hub does not serve adapters that set it")
        return data

    @property
    def method(self) -> str:
        """As a job names it."""
        return str(getattr(self, "peft_type", "")).lower()

    @property
    def rank(self) -> int:
        """0 where the method has none."""
        return int(getattr(self, "r", 0) or 0)

    @property
    def sizes(self) -> Mapping[str, frozenset[int]]:
        """Which sizes the symbols of the layout may have; a symbol that is not named here may have any."""
        return {"rank": frozenset({self.rank, *(getattr(self, "rank_pattern", None) or {}).values()})}
