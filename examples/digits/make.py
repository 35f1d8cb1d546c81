"""Write train.zip and heldout.zip: scikit-learn's handwritten digits as PNGs of 8×8 pixels, in a folder for each digit.

Run with ``pip install scikit-learn pillow`` in an environment of its own:  python examples/digits/make.py
"""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

HELD_OUT_EVERY = 5
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time that every entry gets, so that the same images are the same bytes."""


def main() -> None:
    """Write every fifth image into one archive and the others into another, beside this file."""
    digits = load_digits()
    folder = Path(__file__).parent
    numbered = list(enumerate(zip(digits.images, digits.target, strict=True)))
    for name, is_held_out in (("train.zip", False), ("heldout.zip", True)):
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_STORED) as archive:
            for number, (image, digit) in numbered:
                if (number % HELD_OUT_EVERY == 0) == is_held_out:
                    archive.writestr(zipfile.ZipInfo(f"{digit}/{number:04}.png", EPOCH), _png(image))


def _png(image: np.ndarray) -> bytes:
    """Return an image of 0 to 16 as a PNG of grey levels."""
    file = io.BytesIO()
    Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main()
