"""What a job is to do that converts a published version into derived formats: nothing of it is a training job's."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wegeft.contracts.adapter import AdapterName, AdapterRef, Digest, FileEntry
from wegeft.contracts.errors import InvalidReference
from wegeft.contracts.formats import BaseIdentity, DerivedFormat, StoredDtype
from wegeft.contracts.job_problems import Clash, refuse_clashes
from wegeft.contracts.job_sections import Frozen, PathText, RecoverySpec, ResourcesSpec

_LONGEST_NAME = 64


class ConversionSpec(Frozen):
    """One conversion, as the service has made it of a request; every part of it is settled, so that each attempt does the same."""

    kind: Literal["conversion"] = "conversion"
    ref: str
    """The version, by its number."""
    manifest_digest: Digest
    """Of that version: under a name that somebody gave up, another one may come to be."""
    files: Annotated[tuple[FileEntry, ...], Field(min_length=2, max_length=8)]
    """The version's own, which the worker reads."""
    base_model: PathText
    """Where the worker finds it: a Hugging Face id, a folder, or a `.gguf` file."""
    base_model_revision: str | None = None
    """The commit of a Hugging Face id."""
    base_identity: BaseIdentity
    """What the version was trained on, with its pin where that is known; the worker converts with no other."""
    formats: Annotated[tuple[DerivedFormat, ...], Field(min_length=1, max_length=3)]
    """What is made and attached, all at once."""
    dtype: StoredDtype = "float32"
    """How their numbers are stored."""
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    """Higher goes first."""

    @model_validator(mode="after")
    def _names_a_version(self) -> Self:
        try:
            number = AdapterRef.parse(self.ref).number
        except InvalidReference as error:
            refuse_clashes([Clash(path="ref", message=error.message)])
        else:
            refuse_clashes([] if number is not None else [Clash(path="ref", message="names no version by its number")])
        return self

    @property
    def adapter(self) -> AdapterName:
        """The adapter whose version is converted."""
        return AdapterRef.parse(self.ref).adapter

    @property
    def name(self) -> str:
        """A word for lists of jobs."""
        return f"convert-{self.adapter.name}"[:_LONGEST_NAME]

    @property
    def labels(self) -> dict[str, str]:
        """None: nobody has given any."""
        return {}

    @property
    def resources(self) -> ResourcesSpec:
        """What a worker gets: the cores of its node, and no GPU, as factors are computed in float64."""
        return ResourcesSpec()

    @property
    def job_recovery(self) -> RecoverySpec:
        """How often it is tried again: as a training job that says nothing of it."""
        return RecoverySpec()

    @property
    def max_duration(self) -> str | None:
        """None: a worker that gets on may go on."""
        return None
