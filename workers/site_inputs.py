"""What a site brings: its rows, its copy of the base model, and what its owner decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from wegeft.contracts.errors import InvalidData
from wegeft.contracts.job import DatasetSpec, JobSpec
from workers.base_model import ModelRequest, default_cache, request_of
from workers.data import read_datasets
from workers.rows import AnyRow


@dataclass(frozen=True, kw_only=True)
class SiteOptions:
    """What the site's owner decides."""

    data: Sequence[DatasetSpec]
    """Local files of rows."""
    base_model: str | None = None
    """The site's own copy of the base model; None for the one that the job names."""
    is_once: bool = False
    """Whether to end after one round."""
    patience: timedelta = timedelta(hours=24)
    """How long to wait for a server that does not answer."""


def read_site_rows(data: Sequence[DatasetSpec], max_examples: int) -> list[AnyRow]:
    """Return the site's rows; raise :class:`InvalidData` with every bad row, or where there are more than were declared."""
    rows = read_datasets([(Path(dataset.path), dataset, dataset.path) for dataset in data])
    if len(rows) > max_examples:
        hint = f"give {max_examples} rows at most, or enrol again with --max-examples {len(rows)}"
        raise InvalidData("there are more rows than the site declared at its enrolment", path="--data", value=len(rows), hint=hint)
    return rows


def model_request(spec: JobSpec, base_model: str | None) -> ModelRequest:
    """Return which model a site loads: never with code that comes with it, and on a GPU only where there is one."""
    import torch

    request = replace(request_of(spec, default_cache()), trust_remote_code=False)
    if not torch.cuda.is_available():
        request = replace(request, gpus=0)
    return request if base_model is None else replace(request, base_model=base_model, revision=None)
