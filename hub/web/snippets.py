"""How to use a version, as lines to copy into a shell or a program: what a publisher wrote is quoted, so that it can only be a name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from shlex import quote

from hub.web.showing import show_model
from wegeft.contracts.adapter import VersionView
from wegeft.contracts.job_tasks import TaskType


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """Lines to copy, and what they are for."""

    title: str
    note: str
    code: str


def snippets_for(version: VersionView, server: str, task: str | None) -> tuple[Snippet, ...]:
    """Return how to fetch a version, load it, serve it and convert it; the lines are those that the README shows."""
    return (
        Snippet(title="wgctl", note="Download it; every byte is verified.", code=f"wgctl adapters download {version.ref} -o adapter"),
        Snippet(title="Python", note="Load it into its base model with PEFT.", code=_peft(version, task)),
        Snippet(title="Hugging Face clients", note="Set two variables, and their tools find it here.", code=_hugging_face(version, server)),
        Snippet(title="vLLM", note="Serve it as a LoRA that computes the same.", code=_vllm(version)),
        Snippet(title="Exports", note="For llama.cpp and Ollama, for mlx-lm, and as a whole model.", code=_exports(version)),
    )


_LOADERS = {
    TaskType.SEQUENCE_CLASSIFICATION.value: "AutoModelForSequenceClassification",
    TaskType.IMAGE_CLASSIFICATION.value: "AutoModelForImageClassification",
}


def _peft(version: VersionView, task: str | None) -> str:
    loader, base = _LOADERS.get(task or "", "AutoModelForCausalLM"), version.base_model.partition("@")[0]
    teaching = "import wegeft.method  # teaches PEFT the method\n" if version.method == "wegeft" else ""
    return (
        f"from peft import PeftModel\nfrom transformers import {loader}\n{teaching}\n"
        f'model = {loader}.from_pretrained({json.dumps(base, ensure_ascii=False)})\nmodel = PeftModel.from_pretrained(model, "adapter")'
    )


def _hugging_face(version: VersionView, server: str) -> str:
    return f"export HF_ENDPOINT={quote(server)}\nexport HF_TOKEN=wgt_…\nhf download {version.adapter} --revision {version.version}"


def _vllm(version: VersionView) -> str:
    rank = f" --max-lora-rank {_served_rank(version.rank)}" if version.rank > 16 else ""
    base = version.base_model.partition("@")[0]
    return (
        f"wgctl adapters export {version.ref} --format lora -o lora\n"
        f"vllm serve {_argument(base)} --enable-lora{rank} --lora-modules {show_model(version.adapter).replace('/', '-')}=./lora"
    )


def _argument(name: str) -> str:
    """Return a name as an argument in a shell, which is no option even where the name begins like one."""
    return quote(f"./{name}" if name.startswith("-") else name)


def _served_rank(rank: int) -> int:
    """Return the least of the ranks that vLLM takes which is enough."""
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)


def _exports(version: VersionView) -> str:
    formats = (("gguf", "gguf"), ("mlx", "mlx"), ("merged", "model"))
    return "\n".join(f"wgctl adapters export {version.ref} --format {name} -o {folder}" for name, folder in formats)
