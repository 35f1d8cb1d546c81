"""The kinds of jobs that one queue holds: training, federated or not, and conversion."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter

from wegeft.contracts.conversion_spec import ConversionSpec
from wegeft.contracts.job import JobSpec


def kind_of(found: Any) -> str:
    """Return of which kind a job is, by its spec or its task, read or not."""
    kind = found.get("kind") if isinstance(found, dict) else getattr(found, "kind", None)
    return "conversion" if kind == "conversion" else "training"


AnySpec = Annotated[
    Annotated[JobSpec, Tag("training")] | Annotated[ConversionSpec, Tag("conversion")],
    Discriminator(kind_of),
]
"""What a job is to do; a conversion's says so in its ``kind``, and job.yaml has no such field."""

_SPEC: TypeAdapter[JobSpec | ConversionSpec] = TypeAdapter(AnySpec)


def read_spec(text: str) -> JobSpec | ConversionSpec:
    """Return what a job is to do, as the ledger keeps it."""
    return _SPEC.validate_json(text)
