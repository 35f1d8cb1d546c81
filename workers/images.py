"""Pictures from outside: what is taken for one, and how it is decoded, within bounds of bytes and pixels; it needs no torch."""

from __future__ import annotations

import base64
import binascii
import io
from typing import TYPE_CHECKING

from wegeft.contracts.errors import InvalidData

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_BYTES_LIMIT = 32 << 20
IMAGE_PIXELS_LIMIT = 50_000_000
_FORMATS = ("PNG", "JPEG")
_HINT = "a PNG or JPEG file"


def decode_image(content: bytes) -> Image:
    """Return the picture, upright, in memory. Raises ``InvalidData`` if it is no whole PNG or JPEG, or too large."""
    from PIL import Image, ImageOps

    if len(content) > IMAGE_BYTES_LIMIT:
        raise InvalidData(f"the image has more than {IMAGE_BYTES_LIMIT >> 20} MiB")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_pixels(*image.size)
            image.load()
            return ImageOps.exif_transpose(image)
    except (InvalidData, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidData(f"the image has more than {IMAGE_PIXELS_LIMIT // 1_000_000} million pixels") from error
    except Exception as error:  # decoders of broken bytes raise whatever they stumble over
        raise InvalidData("not a whole image", hint=_HINT) from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > IMAGE_PIXELS_LIMIT:
        message = f"the image has {width}×{height} pixels, more than {IMAGE_PIXELS_LIMIT // 1_000_000} million"
        raise InvalidData(message, hint="make it smaller: models read far fewer")


def read_base64(text: str) -> bytes:
    """Return the bytes that a text holds, plain or as a ``data:`` URL. Raises ``InvalidData`` if it holds none."""
    head, comma, tail = text.partition(",")
    body = tail if comma and head.startswith("data:") and head.endswith(";base64") else text
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "put the image's bytes there as base64, or give a .zip with a folder of images for each label"
        raise InvalidData("not an image in base64", value=text[:40], hint=hint) from error


def image_bytes(value: object) -> bytes:
    """Return the bytes of an image column: bytes, base64, or a mapping with ``bytes``, as the library ``datasets`` writes it.

    Raises ``InvalidData`` for anything else, a path among it: files that rows only name do not travel with them.
    """
    if isinstance(value, dict):
        if value.get("bytes") in (None, "", b""):
            hint = "embed the bytes, or give a .zip with a folder of images for each label"
            raise InvalidData("the row names an image and does not hold it", value=value.get("path"), hint=hint)
        value = value["bytes"]
    match value:
        case bytes():
            return value
        case str():
            return read_base64(value)
        case _:
            raise InvalidData("must be an image", value=value, hint="bytes, base64, or a mapping with bytes")
