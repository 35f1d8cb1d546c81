"""What a list of adapters is asked for in an address: every problem at once, each with its parameter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from hub import catalog
from wegeft.contracts.errors import InvalidRequest
from wegeft.contracts.formats import DerivedFormat
from wegeft.contracts.native_formats import NativeFormat

Texts = Annotated[tuple[str, ...], Field(max_length=8)]


class FilterQuery(BaseModel):
    """Which adapters; parameters that there are not are refused, so that a misspelt one does not list everything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    search: str | None = Field(default=None, description="Words, each the beginning of a word in the adapter's names, tags or card.")
    namespace: str | None = Field(default=None, description="The part of the name before the slash.")
    base_model: str | None = Field(default=None, description="With or without the pinned revision after '@'.")
    method: str | None = Field(default=None, description="For example `wegeft`.")
    rank: int | None = Field(default=None, ge=1, lt=2**31)
    task: str | None = Field(default=None, description="For example `causal_lm`.")
    license: str | None = Field(default=None, description="As the card says, for example `apache-2.0`.")
    format: NativeFormat | None = Field(
        default=None, description="What it is stored as: WeGeFT's generators, LoRA as engines read it, or what PEFT alone reads."
    )
    signed: bool | None = Field(default=None, description="Whether the hub has signed it.")
    tag: Texts = Field(default=(), description="A tag of the card; an adapter must have all that are given.")
    metric: Texts = Field(default=(), description="A bound such as `eval_loss<=0.5`; all that are given must hold.")
    attached: DerivedFormat | None = Field(default=None, description="A derived format that is attached to the newest version.")

    @field_validator("search", "namespace", "base_model", "method", "task", "license", "tag")
    @classmethod
    def _is_usable(cls, value: Any, info: ValidationInfo) -> Any:
        problem = catalog.problem_with("tags" if info.field_name == "tag" else str(info.field_name), value)
        if problem is not None:
            raise ValueError(f"{problem.message}: {problem.hint}")
        return value

    @field_validator("metric")
    @classmethod
    def _are_bounds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            with _told():
                catalog.parse_bound(text)
        return value

    @property
    def wanted(self) -> catalog.AdapterFilter:
        """The filter."""
        return catalog.AdapterFilter(
            search=self.search,
            namespace=self.namespace,
            base_model=self.base_model,
            method=self.method,
            rank=self.rank,
            task=self.task,
            licence=self.license,
            tags=self.tag,
            format=self.format,
            is_signed=self.signed,
            metrics=tuple(catalog.parse_bound(text) for text in self.metric),
            attached=self.attached,
        )


class AdapterQuery(FilterQuery):
    """Which adapters, in which order, and which page of them."""

    order: catalog.Order = Field(default="name", description="By name; the last published to, the last made, or the largest first.")
    limit: int = Field(default=50, ge=1, le=100, description="How many to answer at most.")
    after: str | None = Field(default=None, max_length=1000, description="`next_cursor` of the page before.")

    @field_validator("after")
    @classmethod
    def _is_cursor(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and "order" in info.data:
            with _told():
                catalog.check_cursor(info.data["order"], value)
        return value


@contextmanager
def _told() -> Iterator[None]:
    """Tell an error of ours as one of pydantic's."""
    try:
        yield
    except InvalidRequest as error:
        hint = error.problems[0].hint if error.problems else None
        raise ValueError(f"{error.message}: {hint}" if hint else error.message) from None
