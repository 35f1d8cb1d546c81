"""Images, as a classifier reads them: kept as files, and decoded whenever a batch is made, for pixels take a hundred times the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workers.base_model import BaseModel
from workers.images import decode_image
from workers.labelled_rows import LabelledImage

_PATCHES = 196
"""Of a model that does not say: as many as a ViT-B/16 cuts 224×224 pixels into."""


@dataclass(frozen=True, kw_only=True)
class PictureInputs:
    """The images of one split."""

    rows: tuple[LabelledImage, ...]
    processor: Any
    """An image processor of transformers, which is untyped."""
    mode: str
    """``RGB`` or ``L``, as Pillow names it."""
    patches: int
    """That the model cuts an image into."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Patches of each image, which are resized to the same."""
        return (self.patches,) * len(self.rows)

    def __call__(self, rows: Sequence[int], model: Any) -> dict[str, Tensor]:
        """Return images×channels×height×width."""
        images = [decode_image(self.rows[row].content).convert(self.mode) for row in rows]
        pixels: Tensor = self.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels.to(model.device, model.dtype)}

    def show(self, row: int) -> str:
        """Return which image it is, counted from 1."""
        return f"held-out image {row + 1}"


def picture_inputs(base: BaseModel, rows: Sequence[LabelledImage]) -> PictureInputs:
    """Return the images as ``base`` reads them."""
    config = base.model.config
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    return PictureInputs(
        rows=tuple(rows),
        processor=base.processor,
        mode="L" if getattr(config, "num_channels", 3) == 1 else "RGB",
        patches=(size // patch) ** 2 if isinstance(size, int) and isinstance(patch, int) and patch else _PATCHES,
    )
