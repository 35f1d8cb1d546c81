"""What is known about a version beside its files: evaluations, and where it comes from and went."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from wegeft.contracts.adapter import Digest
from wegeft.contracts.job_tasks import MetricName

MAX_GENERATIONS = 64
"""How far a family tree may go, each way."""
MAX_RELATIVES = 1000
"""How many versions a family tree shows, each way."""

Relation = Literal["next_round", "started_from", "edited"]
"""How a version follows its parent: the next round of a federation, training that began with it, or an upload that changed files of it."""

MEASURES: frozenset[str] = frozenset({"eval_loss", "exact_match", *get_args(MetricName)})
"""Those of a job's figures that are evaluations; the rest tell of the run."""

MetricText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.@/-]{0,99}$")]
DatasetText = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]


def is_evaluation(metric: str) -> bool:
    """Return whether a figure of a job, or the mean of it over a federation's sites, is an evaluation."""
    return metric.removeprefix("mean_") in MEASURES


class EvaluationReport(BaseModel):
    """What somebody has measured of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: MetricText
    value: Annotated[float, Field(allow_inf_nan=False)]
    dataset_digest: Digest | None = None
    """Of the data set's file."""
    dataset_name: DatasetText | None = None


class EvaluationView(BaseModel):
    """A measurement of a version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int
    metric: str
    value: float
    dataset_digest: Digest | None = None
    dataset_name: str | None = None
    is_reported: bool
    """Whether somebody has reported it; False for what the job that made the version has measured."""
    created_at: datetime
    created_by: str


class EvaluationList(BaseModel):
    """A version's evaluations, by metric."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ref: str
    evaluations: tuple[EvaluationView, ...]


class Relative(BaseModel):
    """A version in a family tree, and its next of kin in one direction."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ref: str
    manifest_digest: Digest
    source: str
    relation: Relation
    """How it, or the one below it, follows its parent."""
    kin: tuple[Relative, ...] = ()
    """Its parents among ancestors, its children among descendants; a version that is shown already has none the second time."""


class BaseModelPin(BaseModel):
    """The base model that a version was trained on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    revision: str | None
    """Commit or digest behind the ``@``."""
    config_digest: Digest | None
    """Of its ``config.json``, where the job has told it."""


class LineageView(BaseModel):
    """Where a version comes from, and what came of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ref: str
    manifest_digest: Digest
    source: str
    base_model: BaseModelPin
    round: int | None = None
    """Which round of its federation it is."""
    ancestors: tuple[Relative, ...] = ()
    descendants: tuple[Relative, ...] = ()
    is_cut: bool = False
    """Whether there are more than the answer holds."""
