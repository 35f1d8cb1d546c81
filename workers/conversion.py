"""An attempt at a conversion: the base model, the formats, one after the other, and all of them attached at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wegeft.client import AttemptClient
from wegeft.contracts.adapter import FileEntry
from wegeft.contracts.conversion import ConversionResult, ConversionTask, ConvertedFormat
from wegeft.contracts.errors import BaseModelUnusable
from wegeft.contracts.formats import FORMAT_FILES, DerivedFormat, FormatAttachment
from wegeft.contracts.training import Advanced
from workers.base_identity import comparable_identity, is_same_model
from workers.derived_formats import measurement_of, write_format
from workers.model_source import ModelSource, find_model

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """One attempt's work; what it needs of the service it asks of ``client``."""

    client: AttemptClient
    task: ConversionTask
    folder: Path
    """For this attempt alone."""
    report: Callable[[Advanced], None]
    check_stop: Callable[[], None]
    """Raises where the attempt must not go on; asked between two parts."""

    def run(self) -> ConversionResult:
        """Return the formats, their files stored; nothing is attached yet.

        Raises what the client, :func:`find_model` and the conversions raise, and :class:`BaseModelUnusable` where what was found is not
        the model that the version was trained on.
        """
        native = self._fetch()
        source, base = self._open_base(native)
        self._advance(1, f"opened {source.identity}")
        made = []
        for number, layout in enumerate(self.task.spec.formats, 2):
            made.append(self._make(layout, native, source, base))
            told = made[-1].attachment
            self._advance(number, f"made {layout} of {self.task.spec.dtype}: error of ΔW {told.largest_error:.1e} at most")
        return ConversionResult(formats=tuple(made))

    def _fetch(self) -> Path:
        native = self.folder / "native"
        native.mkdir()
        for entry in self.task.spec.files:
            self.client.get_blob(entry.digest, native / entry.path)
        return native

    def _open_base(self, native: Path) -> tuple[ModelSource, nn.Module]:
        from wegeft.method.stored_head import open_base_of

        spec = self.task.spec
        source = find_model(spec.base_model, spec.base_model_revision)
        if not is_same_model(self._identity_of(source), spec.base_identity):
            message, hint = "the model is not the one that the version was trained on", f"that was {spec.base_identity}"
            raise BaseModelUnusable(message, path="base_model", value=source.identity, hint=hint)
        return source, open_base_of(source.path, native)

    def _identity_of(self, source: ModelSource) -> str:
        return comparable_identity(self.task.spec.base_identity, source.identity, source.former_identity)

    def _make(self, layout: DerivedFormat, native: Path, source: ModelSource, base: nn.Module) -> ConvertedFormat:
        target = self.folder / layout
        written = write_format(layout, native, base, target, self.task.spec.dtype)
        self.check_stop()
        files = []
        for name in sorted(FORMAT_FILES[layout]):
            blob = self.client.put_blob(target / name)
            files.append(FileEntry(path=name, digest=blob.digest, size=blob.size))
        measured = measurement_of(written, self._identity_of(source), source.path)
        return ConvertedFormat(format=layout, attachment=FormatAttachment(files=tuple(files), **measured.model_dump()))

    def _advance(self, step: int, text: str) -> None:
        self.report(Advanced(step=step, total_steps=1 + len(self.task.spec.formats), text=text))
        self.check_stop()
