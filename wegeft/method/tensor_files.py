"""Tensors from files that hold nothing but numbers."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wegeft.contracts.errors import InvalidTensors

SIZE_LIMIT = 4 << 30
"""Bytes of all arrays in an ``.npz`` file, unpacked; a small file may claim any amount."""

_STORED = frozenset({torch.float16, torch.bfloat16, torch.float32})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` or ``.npz`` file, in float32 unless stored in half precision, on the CPU.

    Raises ``InvalidTensors`` for a file that is missing, damaged or too large, holds anything but numbers, or is of another kind:
    torch's own checkpoints are pickles, which can run any code when they are read.
    """
    if path.suffix not in {".safetensors", ".npz"}:
        raise InvalidTensors(
            "pickled checkpoints are never read, for reading one can run any code",
            path=str(path),
            hint="where you trust it, load it with torch.load(…, weights_only=True), write its tensors with safetensors.torch.save_file, "
            "and give that file",
        )
    if not path.is_file():
        hint = "pickled weights beside it are never read; write them as safetensors first" if _has_pickle(path.parent) else None
        raise InvalidTensors("there is no such file", path=str(path), hint=hint)
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else _read_npz(path)
    except (SafetensorError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise InvalidTensors(f"the file cannot be read: {error}", path=str(path)) from error
    return {key: _as_stored(key, tensor) for key, tensor in tensors.items()}


def _has_pickle(folder: Path) -> bool:
    return folder.is_dir() and any(entry.suffix in {".bin", ".pt", ".pth", ".tar", ".ckpt", ".pkl"} for entry in folder.iterdir())


def _read_npz(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > SIZE_LIMIT:
        raise InvalidTensors(f"the file unpacks to more than {SIZE_LIMIT} bytes", path=str(path), value=size)
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key], dtype=np.float32)) for key in arrays.files}


def _as_stored(key: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise InvalidTensors("holds numbers that are not floating-point", path=key, value=str(tensor.dtype))
    return tensor if tensor.dtype in _STORED else tensor.float()
