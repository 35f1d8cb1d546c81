"""Which engines load a version, told from its configuration and from what the engines take.

vLLM: ``PEFTHelper`` takes LoRA without DoRA, biases and modules trained in full, and ranks up to ``max_lora_rank``, one of a list.
llama.cpp reads GGUF adapters, mlx-lm a folder of its own; to both, ``wgctl adapters export`` converts what our method has trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Loads = Literal["as_is", "converted", "no"]

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` may be."""


class EngineView(BaseModel):
    """Whether an engine loads a version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    engine: str
    loads: Loads
    """As it is published, once ``wgctl adapters export`` has converted it, or not at all."""
    how: str
    """What to do, or why not."""


class EngineReport(BaseModel):
    """Which engines load a version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ref: str
    engines: tuple[EngineView, ...]


@dataclass(frozen=True, kw_only=True)
class _Adapter:
    """What decides."""

    ref: str
    method: str
    rank: int
    saved: tuple[str, ...]
    """Modules trained in full."""
    is_generative: bool


def engine_report(ref: str, method: str, config: Mapping[str, Any]) -> EngineReport:
    """Return which engines load a version; ``config`` is its ``adapter_config.json``, which has passed the publish gate."""
    ranks = [config.get("r") or 0, *(config.get("rank_pattern") or {}).values()]
    adapter = _Adapter(
        ref=ref,
        method=_variant(method, config),
        rank=max(ranks),
        saved=tuple(config.get("modules_to_save") or ()),
        is_generative=config.get("task_type") in ("CAUSAL_LM", None) and not config.get("modules_to_save"),
    )
    return EngineReport(ref=ref, engines=(_peft(adapter), _vllm(adapter), _llama_cpp(adapter), _mlx(adapter)))


def _variant(method: str, config: Mapping[str, Any]) -> str:
    return "dora" if method == "lora" and config.get("use_dora") else method


def _view(engine: str, loads: Loads, how: str) -> EngineView:
    return EngineView(engine=engine, loads=loads, how=how)


def _peft(adapter: _Adapter) -> EngineView:
    if adapter.method == "wegeft":
        how = "import wegeft.method, then PeftModel.from_pretrained; without this package: wgctl adapters export --format lora"
        return _view("peft", "as_is", how)
    return _view("peft", "as_is", "PeftModel.from_pretrained")


def _vllm(adapter: _Adapter) -> EngineView:
    if adapter.saved:
        return _view("vllm", "no", f"it takes no modules that were trained in full: {', '.join(adapter.saved[:5])}")
    if adapter.method not in ("wegeft", "lora", "rslora"):
        return _view("vllm", "no", f"it takes LoRA alone, not {adapter.method}")
    allowed = next((rank for rank in VLLM_RANKS if rank >= adapter.rank), None)
    if allowed is None:
        return _view("vllm", "no", f"rank {adapter.rank} is above {VLLM_RANKS[-1]}, its largest max_lora_rank")
    needs = f"needs max_lora_rank {allowed}: --enable-lora --max-lora-rank {allowed}"
    if adapter.method == "wegeft":
        return _view("vllm", "converted", f"wgctl adapters export {adapter.ref} --format lora; {needs}")
    return _view("vllm", "as_is", needs)


def _llama_cpp(adapter: _Adapter) -> EngineView:
    if not adapter.is_generative:
        return _view("llama.cpp", "no", "it takes adapters of language models without modules that were trained in full")
    if adapter.method == "wegeft":
        return _view("llama.cpp", "converted", f"wgctl adapters export {adapter.ref} --format gguf; then --lora adapter.gguf")
    if adapter.method in ("lora", "rslora"):
        return _view("llama.cpp", "converted", "its own convert_lora_to_gguf.py converts the folder")
    return _view("llama.cpp", "no", f"its adapters are LoRA, not {adapter.method}")


def _mlx(adapter: _Adapter) -> EngineView:
    if not adapter.is_generative:
        return _view("mlx", "no", "mlx-lm takes adapters of language models without modules that were trained in full")
    if adapter.method == "wegeft":
        return _view("mlx", "converted", f"wgctl adapters export {adapter.ref} --format mlx; then --adapter-path")
    return _view("mlx", "no", "mlx-lm has a format of its own, to which only WeGeFT adapters are converted here")
