"""Derived formats of an adapter, written where its base model is: the one code for a person's machine and for a worker."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from wegeft.contracts.adapter import digest_of
from wegeft.contracts.formats import DerivedFormat, FormatMeasurement, StoredDtype

if TYPE_CHECKING:
    from torch import nn

    from wegeft.method import Export


def write_format(
    layout: DerivedFormat, adapter: Path, base: nn.Module, target: Path, dtype: StoredDtype, ollama_base: str | None = None
) -> Export:
    """Write an adapter's folder as what an engine reads into the new folder ``target``, and return what was measured of it.

    ``base``: its base model, as ``open_base_of`` opens it, which stays as it is; ``ollama_base``: see ``to_gguf``.
    Raises what the conversions of ``wegeft.method`` raise.
    """
    from wegeft.method import to_gguf, to_lora, to_mlx

    stored: Any = dtype  # each form says itself which it takes
    match layout:
        case "lora":
            return to_lora(adapter, base, target, dtype=stored)
        case "gguf":
            return to_gguf(adapter, base, target, dtype=stored, ollama_base=ollama_base)
        case "mlx":
            return to_mlx(adapter, base, target, dtype=stored)
        case _:
            assert_never(layout)


def measurement_of(written: Export, base_identity: str, base_path: Path) -> FormatMeasurement:
    """Return what a hub is told of a format that was written: with which base model, a folder or a file, and how far off it is."""
    config = base_path / "config.json"
    return FormatMeasurement(
        base_model=base_identity,
        base_config_digest=digest_of(config.read_bytes()) if config.is_file() else None,
        largest_error=written.largest_error,
        largest_error_layer=max(written.errors, key=lambda name: written.errors[name]),
        layers=len(written.errors),
        made_by=f"wegeft-hub {version('wegeft-hub')}",
    )
