"""A GGUF file as a plain model: weights dequantised to float32, in a folder that loads like any other.

Converting takes a quarter of a minute for a small model and loading the result a moment, so results are kept, by the file's digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wegeft.contracts.errors import BaseModelUnusable, shorten
from workers.private_folder import private_folder

CACHED_FILE_LIMIT = 1 << 30
"""Bytes; a larger file is converted each time, for its result could fill a disk."""


@contextmanager
def plain_folder(gguf: Path, digest: str, cache: Path | None) -> Iterator[Path]:
    """Yield a folder with the model and tokenizer of ``gguf``; it goes away at the end unless ``cache`` keeps it.

    Raises ``BaseModelUnusable`` if the file is of an architecture or quantisation that transformers cannot read.
    """
    if cache is None or gguf.stat().st_size > CACHED_FILE_LIMIT or not _is_writable(cache):
        with private_folder() as folder:
            _convert(gguf, folder)
            yield folder
        return
    yield _cached_folder(gguf, digest, cache)


def _is_writable(cache: Path) -> bool:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(cache, os.W_OK)


def _cached_folder(gguf: Path, digest: str, cache: Path) -> Path:
    import transformers

    # Another release may read the file differently.
    folder = cache / f"{digest.removeprefix('sha256:')}-{transformers.__version__}"
    if folder.is_dir():
        return folder
    with private_folder(cache) as work:
        result = work / "model"
        result.mkdir()
        _convert(gguf, result)
        _sync(result)
        try:
            result.rename(folder)
        except OSError:
            if not folder.is_dir():  # Otherwise another worker was faster, with the same result.
                raise
    return folder


def _sync(folder: Path) -> None:
    """Make the files durable before the rename that makes them visible."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    except MemoryError:
        raise
    except Exception as error:
        message = f"the GGUF file cannot be read: {shorten(str(error))}"
        hint = "is its architecture one that transformers reads from GGUF? If not, convert it to safetensors"
        raise BaseModelUnusable(message, path="base_model", value=str(gguf), hint=hint) from error
    # The weights are plain by now, but transformers still refuses to save what it takes for a quantised model.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
