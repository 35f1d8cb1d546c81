"""What every export leaves behind: a folder that appears whole or not at all, and how far it is from the adapter."""

import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors, Problem

ERROR_LIMITS = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2, "q8_0": 5e-2}
"""Largest relative error of ΔW that storing its factors in a type explains; beyond it what was written is wrong."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A written export and its distance from the adapter, measured on what was written."""

    path: Path
    """The folder."""
    dtype: str
    """How the numbers are stored."""
    errors: Mapping[str, float]
    """By layer: ``‖ΔW_written − ΔW‖_F / ‖ΔW‖_F`` against ΔW in float64."""

    weight_errors: Mapping[str, float] = field(default_factory=dict)
    """By layer, where whole weights are written: ``‖W_written − W'‖_F / ‖W'‖_F``."""

    @property
    def largest_error(self) -> float:
        """The error of the worst layer."""
        return max(self.errors.values())


def write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder beside ``out``, then give it that name; a crash or an error leaves nothing under it.

    Raises ``FileExistsError`` if ``out`` exists and is not an empty folder.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        write(folder)
        _sync(folder)
        folder.rename(out)


def check_dtype(dtype: str, kinds: Collection[str]) -> None:
    """Raise ``InvalidAdapterConfig`` unless ``dtype`` is one of the storage types that a form has."""
    if dtype not in kinds:
        raise InvalidAdapterConfig("not a storage type of this form", path="dtype", value=dtype, hint=", ".join(kinds))


def check_free(out: Path) -> None:
    """Raise ``FileExistsError`` unless ``out`` is absent or an empty folder: before the work, not after it."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder")


def check_errors(errors: Mapping[str, float], limit: float) -> None:
    """Raise ``InvalidTensors`` with every layer whose error exceeds what rounding to the storage type explains."""
    problems = [
        Problem(path=name, message=f"the storage type cannot hold the change: its error is {error:.3g}, more than {limit:g}")
        for name, error in errors.items()
        if not error <= limit
    ]
    if problems:
        raise InvalidTensors("the adapter cannot be stored in this type", problems=problems)


def _sync(folder: Path) -> None:
    """Make the files durable before the rename that makes them visible."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
