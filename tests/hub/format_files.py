"""Derived formats of a small adapter, written by numpy alone from the formulas of their readers, and one version that they are of."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.hub.serving import Hub
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, FileEntry, digest_of
from wegeft.contracts.tensor_writer import write_tensors

Array = NDArray[np.float64]
NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj")
WIDTHS = {"q_proj": 8, "down_proj": 12}
"""What each reads; all write eight features."""
RANK = 2
BASE = "org/base@" + "a" * 40


def generators(seed: int = 0) -> dict[str, tuple[Array, Array]]:
    """φ and ψ of each group; float32 holds them."""
    random = np.random.default_rng(seed)
    shapes = {group: (width, RANK) for group, width in WIDTHS.items()}
    return {
        name: tuple(random.normal(size=size).astype(np.float32).astype(np.float64) for size in (shape, shape[::-1]))  # type: ignore[misc]
        for name, shape in shapes.items()
    }


def publish(hub: Hub, transform: str = "input", source: str = "job:1") -> dict[str, tuple[Array, Array]]:
    """Publish the adapter as demo/x@1 and return its generators."""
    made = generators()
    hub.publish_files(source, "demo/x", native(made, transform), base_model=BASE, rank=RANK)
    return made


def native(made: dict[str, tuple[Array, Array]], transform: str = "input") -> dict[str, bytes]:
    """Return the files of the adapter itself."""
    config = {
        "peft_type": "WEGEFT",
        "r": RANK,
        "wegeft_alpha": 4.0,
        "task_type": "CAUSAL_LM",
        "target_modules": list(WIDTHS),
        "transform": transform,
        "base_model_name_or_path": "org/base",
    }
    tensors = {
        f"base_model.wegeft_generators.{g}.{part}": array
        for g, pair in made.items()
        for part, array in zip(("phi", "psi"), pair, strict=True)
    }
    return {CONFIG_FILE: json.dumps(config).encode(), WEIGHTS_FILE: write_tensors(tensors, "F32", {"format": "pt"})}


def factors(made: dict[str, tuple[Array, Array]], transform: str = "input") -> dict[str, tuple[Array, Array]]:
    """Return up and down of each layer, on weights that only this knows."""
    random, scale = np.random.default_rng(9), 2.0
    found = {}
    for name in NAMES:
        phi, psi = made[name.rpartition(".")[2]]
        weight = random.normal(size=(8, phi.shape[0]) if transform == "input" else (phi.shape[0], 6))
        found[name] = (scale * weight @ phi, psi) if transform == "input" else (scale * phi, psi @ weight)
    return found


def lora(found: dict[str, tuple[Array, Array]], stored: str = "F32", **config: Any) -> dict[str, bytes]:
    """Return the files of a PEFT LoRA, as PEFT writes its configuration."""
    told = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": sorted(WIDTHS),
        "base_model_name_or_path": "org/base",
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "fan_in_fan_out": False,
        **config,
    }
    tensors = {}
    for name, (up, down) in found.items():
        tensors |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    kind: Any = stored
    return {CONFIG_FILE: json.dumps(told).encode(), WEIGHTS_FILE: write_tensors(tensors, kind, {"format": "pt"})}


def mlx(found: dict[str, tuple[Array, Array]], **config: Any) -> dict[str, bytes]:
    """Return the files of an mlx-lm adapter: both factors transposed."""
    keys = sorted({name.split(".", 3)[3] for name in found})
    told = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": RANK, "scale": 1.0, "dropout": 0.0, "keys": keys},
    } | config
    tensors = {}
    for name, (up, down) in found.items():
        tensors |= {f"{name}.lora_a": down.T, f"{name}.lora_b": up.T}
    return {CONFIG_FILE: json.dumps(told).encode(), "adapters.safetensors": write_tensors(tensors, "F32", {"format": "mlx"})}


def gguf_files(found: dict[str, tuple[Array, Array]], folder: Path, kind: str = "F32", modelfile: str = "") -> dict[str, bytes]:
    """Return the files of a GGUF adapter, the rows of every other tensor in another order, as llama.cpp stores those of q_proj."""
    path = folder / f"{kind}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(RANK))
    stored = gguf.GGMLQuantizationType[kind]
    for number, (up, down) in enumerate(found.values()):
        rows = up[::-1] if number % 2 else up
        for part, array in (("lora_a", down), ("lora_b", rows)):
            data = gguf.quants.quantize(np.ascontiguousarray(array, np.float32), stored)
            writer.add_tensor(f"blk.{number}.attn_q.weight.{part}", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = modelfile or "# The base must be the model that the adapter was trained on.\nFROM org/base\nADAPTER ./adapter.gguf\n"
    return {"adapter.gguf": path.read_bytes(), "Modelfile": text.encode()}


def attachment(files: dict[str, bytes], **changes: Any) -> dict[str, Any]:
    """Return the request that attaches files."""
    entries = [FileEntry(path=path, digest=digest_of(body), size=len(body)).model_dump() for path, body in files.items()]
    told = {"files": entries, "base_model": BASE, "largest_error": 1e-8, "largest_error_layer": NAMES[0], "layers": 3, "made_by": "test 1"}
    return told | changes


def send(client: Any, files: dict[str, bytes]) -> None:
    """Send the bytes of files."""
    for body in files.values():
        assert client.put(f"/api/v1/blobs/{digest_of(body)}", content=io.BytesIO(body).read()).status_code in (200, 201)
