"""How two versions differ: configuration, what their generators do, and what was measured of them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from wegeft.contracts.adapter import Digest


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FieldChange(_View):
    """A field of the configuration that differs."""

    field: str
    first: str | None
    """As JSON, shortened; None where the field is not there."""
    second: str | None


class GroupDifference(_View):
    """How the generators ``G = s·φψ`` of one group differ, or LoRA's products ``G = s·BA`` of one module, whose ψ is A and φ is B.

    Norms are Frobenius; angles are in radians, smallest first.
    """

    group: str
    first_norm: float | None
    """``‖G₁‖``; None where only the other has the group."""
    second_norm: float | None
    difference: float | None
    """``‖G₂ − G₁‖``; None where their widths differ."""
    cosine: float | None = None
    read_angles: tuple[float, ...] = ()
    """Between the subspaces that they read, those of ψ."""
    write_angles: tuple[float, ...] = ()
    """Between the subspaces that they write, those of φ; none where a generator is zero."""


class EvaluationDelta(_View):
    """One metric, measured of both on the same data."""

    metric: str
    dataset_digest: Digest | None
    dataset_name: str | None
    first: float
    second: float
    delta: float
    """Second less first."""


class ComparisonView(_View):
    """How the second version differs from the first."""

    first: str
    """``namespace/name@version``."""
    second: str
    base_models: tuple[str, str]
    config: tuple[FieldChange, ...]
    cosine: float | None
    """Of all generators together; None where they are not compared."""
    first_norm: float | None
    second_norm: float | None
    difference: float | None
    groups: tuple[GroupDifference, ...]
    incomparable: str | None
    """Why the generators are not compared; None where they are."""
    evaluations: tuple[EvaluationDelta, ...]
