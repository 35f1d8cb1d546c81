"""The kinds of jobs that one queue holds: training, federated or not, and conversion."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter

from wegeft.contracts.conversion_spec import ConversionSpec
from wegeft.contracts.job import JobSpec


def _kind_of(found: Any) -> str:
    kind = found.get("kind") if isinstance(found, dict) else getattr(found, "kind", None)
    return "conversion" if kind == "conversion" else "training"


AnySpec = Annotated[
    Annotated[JobSpec, Tag("training")] | Annotated[ConversionSpec, Tag("conversion")],
    Discriminator(_kind_of),
]
"""What a job is to do; a conversion's says so in its ``kind``, and job.yaml has no such field."""

_SPEC: TypeAdapter[JobSpec | ConversionSpec] = TypeAdapter(AnySpec)


def read_spec(text: str) -> JobSpec | ConversionSpec:
    """Return what a job is to do, as the ledger keeps it."""
    return _SPEC.validate_json(text)
