"""What is said of conversions: asking for one, what its worker gets and reports, and the answer to who has asked."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, RootModel, Tag, model_validator

from wegeft.contracts.conversion_spec import ConversionSpec
from wegeft.contracts.formats import AttachedFormat, DerivedFormat, FormatAttachment, StoredDtype
from wegeft.contracts.job_kinds import kind_of
from wegeft.contracts.training import JobView, TrainingTask


class ConversionRequest(BaseModel):
    """Which derived formats of a version a worker shall make."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    formats: Annotated[tuple[DerivedFormat, ...], Field(min_length=1, max_length=3)]
    """Each once."""
    dtype: StoredDtype = "float32"
    """How their numbers are stored; `q8_0` is for `gguf` alone."""
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    """Of the job; higher goes first."""

    @model_validator(mode="after")
    def _formats_go_together(self) -> Self:
        if len(set(self.formats)) < len(self.formats):
            raise ValueError("each format may be named once")
        if self.dtype == "q8_0" and set(self.formats) != {"gguf"}:
            raise ValueError("q8_0 is for gguf alone")
        return self


class ConversionAnswer(BaseModel):
    """What becomes of a request for derived formats."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ref: str
    """The version, by its number."""
    attached: tuple[AttachedFormat, ...]
    """Those of the formats that are there already."""
    job: JobView | None
    """The job that makes the others, new or under way already; None where all are attached."""


class ConversionTask(BaseModel):
    """One attempt at one conversion, as the worker receives it; it holds no credentials."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["conversion"] = "conversion"
    job_id: str
    attempt: int
    spec: ConversionSpec
    heartbeat_seconds: float
    """How often the worker must say that it lives."""
    lease_seconds: float
    """A worker that could not renew for so long stops itself."""


class ConvertedFormat(BaseModel):
    """One format that an attempt has made; its files are in the store already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: DerivedFormat
    attachment: FormatAttachment


class ConversionResult(BaseModel):
    """Every format of a conversion: they are attached together, or none is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    formats: Annotated[tuple[ConvertedFormat, ...], Field(min_length=1, max_length=3)]


AnyTask = Annotated[Annotated[TrainingTask, Tag("training")] | Annotated[ConversionTask, Tag("conversion")], Discriminator(kind_of)]
"""What a worker is to do."""


class AttemptTask(RootModel[AnyTask]):
    """What the orchestrator answers to a worker that asks what it is to do."""
