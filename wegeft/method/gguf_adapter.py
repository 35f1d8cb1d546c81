"""A LoRA adapter that llama.cpp loads beside its own GGUF of the base model, and a Modelfile for Ollama."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

import gguf
from torch import nn

from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method.export_folder import Export, check_errors, check_free, write_folder
from wegeft.method.gguf_layout import Place, architecture_of, dequantise, places_of, quantise
from wegeft.method.low_rank import Array, Factors, balanced, relative_error
from wegeft.method.native_adapter import AdapterSource, NativeAdapter, low_rank_factors, read_adapter

ADAPTER_FILE = "adapter.gguf"
MODELFILE = "Modelfile"

GgufDtype = Literal["float32", "float16", "bfloat16", "q8_0"]

_KINDS = {
    "float32": gguf.GGMLQuantizationType.F32,
    "float16": gguf.GGMLQuantizationType.F16,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_FILE_TYPES = {
    "float32": gguf.LlamaFileType.ALL_F32,
    "float16": gguf.LlamaFileType.MOSTLY_F16,
    "bfloat16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_ERROR_LIMITS = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2, "q8_0": 5e-2}
"""Largest relative error of ΔW that storage explains; beyond it the file is wrong."""
_BLOCK = 32
"""Numbers in a block of Q8_0; rows of other lengths are stored as float16, as llama.cpp's converter does."""


def to_gguf(
    source: AdapterSource,
    base_model: nn.Module | None,
    out_dir: str | os.PathLike[str],
    *,
    dtype: GgufDtype = "float32",
    ollama_base: str | None = None,
    adapter_name: str = "default",
) -> Export:
    """Write ``adapter.gguf`` and a ``Modelfile`` into a new folder, read the file back, and return how far it is from the adapter.

    ``source`` and ``base_model`` as in ``to_lora``. Per layer ``blk.N.….lora_a = ψ`` and ``….lora_b = s·Wφ`` with rows in llama.cpp's
    order, and the layer's own rank; ``adapter.lora.alpha`` is the largest rank, so that any reader's ``alpha / rank`` is undone
    in ``lora_b``. ``ollama_base``: what the Modelfile builds on, a model of Ollama or a path of a GGUF file or a folder; by default the
    base model that the adapter names.

    Raises ``FileExistsError`` if ``out_dir`` exists and is not an empty folder; ``InvalidAdapterConfig`` for a base model without a
    layout in ``gguf_layout.ARCHITECTURES``, a layer that llama.cpp lacks, an edited bias or ``modules_to_save``; ``InvalidTensors`` if
    the file does not hold the adapter or ``dtype`` cannot. Source: llama.cpp's ``convert_lora_to_gguf.py`` and ``llama-adapter.cpp``.
    """
    if dtype not in get_args(GgufDtype):
        raise InvalidAdapterConfig("not a storage type", path="dtype", value=dtype, hint=", ".join(get_args(GgufDtype)))
    out = Path(out_dir)
    check_free(out)
    adapter = read_adapter(source, base_model, adapter_name)
    adapter.check_low_rank("llama.cpp")
    places = places_of(adapter.base, [name for group in adapter.groups for name in group.members])
    modelfile = _modelfile(ollama_base or adapter.config.base_model_name_or_path)
    errors: dict[str, float] = {}

    def write(folder: Path) -> None:
        _write_file(folder / ADAPTER_FILE, adapter, places, dtype)
        (folder / MODELFILE).write_text(modelfile, encoding="utf-8")
        errors.update(_measure(folder / ADAPTER_FILE, adapter, places))
        check_errors(errors, _ERROR_LIMITS[dtype])

    write_folder(out, write)
    return Export(path=out, dtype=dtype, errors=errors)


def _write_file(path: Path, adapter: NativeAdapter, places: Mapping[str, Place], dtype: GgufDtype) -> None:
    alpha = max(group.rank for group in adapter.groups)
    writer = gguf.GGUFWriter(path, architecture_of(adapter.base).name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for edit in adapter.edits():
        factors = low_rank_factors(edit) if dtype == "float32" else balanced(low_rank_factors(edit))
        place = places[edit.name]
        # llama.cpp multiplies by alpha / rank.
        stored = {"lora_a": factors.down, "lora_b": place.to_stored(factors.up * (factors.rank / alpha))}
        for part, array in stored.items():
            kind = _kind_of(array, dtype)
            writer.add_tensor(f"{place.tensor}.{part}", quantise(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _kind_of(array: Array, dtype: GgufDtype) -> gguf.GGMLQuantizationType:
    fits = dtype != "q8_0" or array.shape[-1] % _BLOCK == 0
    return _KINDS[dtype if fits else "float16"]


def read_gguf_adapter(path: str | os.PathLike[str]) -> Iterator[tuple[str, Factors]]:
    """Yield (tensor of the base model, its change) of a GGUF LoRA adapter as llama.cpp computes it, rows in llama.cpp's order."""
    reader = gguf.GGUFReader(path)
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name in sorted({name.rpartition(".")[0] for name in tensors}):
        down, up = (dequantise(tensors[f"{name}.{part}"].data, tensors[f"{name}.{part}"].tensor_type) for part in ("lora_a", "lora_b"))
        rank = down.shape[0]
        yield name, Factors(up=up * (alpha / rank if alpha else 1.0), down=down)


def _measure(path: Path, adapter: NativeAdapter, places: Mapping[str, Place]) -> dict[str, float]:
    written = dict(read_gguf_adapter(path))
    errors = {}
    for edit in adapter.edits():
        place = places[edit.name]
        found = written[place.tensor]
        errors[edit.name] = relative_error(Factors(up=place.from_stored(found.up), down=found.down), edit.factors())
    return errors


def _modelfile(base: str | None) -> str:
    if not base:
        raise InvalidAdapterConfig("the Modelfile needs a base model, and the adapter names none", path="ollama_base")
    if not base.isprintable():
        raise InvalidAdapterConfig("a Modelfile's base is one line of printable characters", path="ollama_base", value=base)
    return f"# The base must be the model that the adapter was trained on.\nFROM {base}\nADAPTER ./{ADAPTER_FILE}\n"
