"""Derived formats of a version: what engines read instead of the generators, made where the base model is and attached to the version.

Every one of them holds ``s·Wφ`` or ``ψW``, so none can be made without the base model's weights. Whoever has them converts, measures
what was written against the exact change, and attaches the files with that error. They can be made again at any time, so they are no part
of the version, whose signature does not cover them: each has one of its own. They are the first to go where space is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from wegeft.contracts.adapter import Digest, FileEntry
from wegeft.contracts.base_model_name import have_same_pin, unpinned_name

DerivedFormat = Literal["lora", "gguf", "mlx"]
"""What can be attached: a standard LoRA of PEFT, an adapter for llama.cpp and Ollama, and one for mlx-lm."""
StoredDtype = Literal["float32", "float16", "bfloat16", "q8_0"]

ERROR_LIMITS: Mapping[StoredDtype, float] = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2, "q8_0": 5e-2}
"""Largest relative error of ΔW that rounding its factors to a type explains; beyond it what was written is wrong."""

GGUF_FILE = "adapter.gguf"
MODELFILE = "Modelfile"
MLX_FILE = "adapters.safetensors"
FORMAT_FILES: Mapping[DerivedFormat, frozenset[str]] = {
    "lora": frozenset({"adapter_config.json", "adapter_model.safetensors"}),
    "gguf": frozenset({GGUF_FILE, MODELFILE}),
    "mlx": frozenset({"adapter_config.json", MLX_FILE}),
}
"""The files of each, all of which must be there."""

ShortText = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,400}$")]
BaseIdentity = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,4200}$")]


class FormatMeasurement(BaseModel):
    """What was measured of a derived format where it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: BaseIdentity
    """What it was made with: ``id@commit``, or a path with the digest of its files."""
    base_config_digest: Digest | None = None
    """Of that model's ``config.json``."""
    largest_error: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """``‖ΔW written − ΔW‖_F / ‖ΔW‖_F`` of the worst layer, read back from the files, against ΔW in float64."""
    largest_error_layer: ShortText
    layers: Annotated[int, Field(ge=1, le=20_000)]
    """How many were measured: all that the adapter changes."""
    made_by: ShortText
    """Program and version."""


class FormatAttachment(FormatMeasurement):
    """Files to be attached, whose bytes were sent before, and what was measured of them."""

    files: tuple[FileEntry, ...] = Field(min_length=2, max_length=2)


class AttachedFormat(BaseModel):
    """A derived format that the hub holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: DerivedFormat
    dtype: StoredDtype
    files: tuple[FileEntry, ...]
    size: int
    """Bytes of all files."""
    base_model: str
    base_config_digest: Digest | None = None
    largest_error: float
    """As whoever attached it has measured; the hub checks only what can be seen without the base model's weights."""
    largest_error_layer: str
    layers: int
    made_by: str
    created_at: datetime
    created_by: str
    kept_until: datetime
    """When it goes unless somebody fetches it before."""
    signature: str | None = None
    """The hub's, a Sigstore bundle as JSON text; None where the hub does not sign."""


class FormatView(BaseModel):
    """A form in which a version can be had."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["native", "lora", "gguf", "mlx", "merged"]
    state: Literal["published", "attached", "convertible", "impossible"]
    """The version's own files; fetched from the hub; to be made where the base model is; or not to be had."""
    how: str
    """What to do, or why not."""
    attached: tuple[AttachedFormat, ...] = ()
    """One for each type of numbers."""


class FormatList(BaseModel):
    """Every form in which a version can be had, or why not."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ref: str
    formats: tuple[FormatView, ...]


def may_be_same_base(first: str, second: str) -> bool:
    """Whether two names can mean one base model: by their pins where both have one of a kind, else by their names."""
    known = have_same_pin(first, second)
    return unpinned_name(first) == unpinned_name(second) if known is None else known
