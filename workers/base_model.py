"""The frozen model that a job adapts, and its tokenizer, loaded from an id, a folder or a GGUF file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from wegeft.contracts.errors import BaseModelUnusable, NoCapacity, OutOfMemory, WegeftError, shorten
from wegeft.contracts.job import JobSpec
from workers.gguf_model import plain_folder
from workers.model_source import ModelSource, find_model

_LOADING = threading.Lock()
"""transformers makes empty models by changing torch for the whole process, so two threads must not load at once."""


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Which model to load, and how."""

    base_model: str
    revision: str | None = None
    bf16: Literal["auto"] | bool = "auto"
    attn_implementation: str = "auto"
    trust_remote_code: bool = False
    gpus: int = 0
    cache: Path | None = None
    """Where converted GGUF files are kept; None keeps none."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A frozen causal language model on its device."""

    model: Any
    tokenizer: Any
    identity: str
    """What was loaded, exactly; see ``ModelSource.identity``."""
    commit: str | None
    license: str | None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device


def default_cache() -> Path:
    """Return where converted GGUF files are kept: beside the models that the Hugging Face libraries keep."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "wegeft" / "gguf"


def request_of(spec: JobSpec, cache: Path | None = None) -> ModelRequest:
    """Return the request of a job."""
    return ModelRequest(
        base_model=spec.base_model,
        revision=spec.base_model_revision,
        bf16=spec.bf16,
        attn_implementation=spec.attn_implementation,
        trust_remote_code=spec.trust_remote_code,
        gpus=spec.resources.gpus,
        cache=cache,
    )


def load_base_model(request: ModelRequest) -> BaseModel:
    """Load the model and its tokenizer; the model is in evaluation mode and none of its weights wants a gradient.

    Raises ``BaseModelNotFound``, ``BaseModelUnusable``, ``OutOfMemory``, or ``NoCapacity`` where a GPU is asked for and torch sees none.
    """
    device = _device(request)
    with _LOADING, _quiet_libraries():
        source = find_model(request.base_model, request.revision, with_code=request.trust_remote_code)
        with _folder_of(source, request.cache) as folder:
            tokenizer = _load_tokenizer(folder, request)
            model = _load_model(folder, request, device)
    _check_vocabulary(model, tokenizer, request)
    model.requires_grad_(requires_grad=False)
    model.eval()
    return BaseModel(model=model, tokenizer=tokenizer, identity=source.identity, commit=source.commit, license=source.license)


def _device(request: ModelRequest) -> torch.device:
    if not request.gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NoCapacity("the job asks for a GPU and torch sees none", path="resources.gpus", value=request.gpus)
    return torch.device("cuda")


@contextmanager
def _folder_of(source: ModelSource, cache: Path | None) -> Iterator[Path]:
    if source.folder is not None:
        yield source.folder
    elif source.gguf is not None:
        with plain_folder(source.gguf, source.identity.rpartition("@")[2], cache) as folder:
            yield folder


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep progress bars out of a service's log."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # Turns off those of huggingface_hub too.
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _load_tokenizer(folder: Path, request: ModelRequest) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=request.trust_remote_code)
    except Exception as error:
        raise _unusable("its tokenizer cannot be loaded", error, request) from error


def _load_model(folder: Path, request: ModelRequest, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {} if request.attn_implementation == "auto" else {"attn_implementation": request.attn_implementation}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_dtype(request.bf16, device),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=request.trust_remote_code,
            output_loading_info=True,
            **options,
        )
        model.to(device)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory("the base model does not fit into memory", path="base_model", value=request.base_model) from error
    except Exception as error:
        raise _unusable("it cannot be loaded", error, request) from error
    _check_weights(report, request)
    return model


def _dtype(bf16: Literal["auto"] | bool, device: torch.device) -> torch.dtype:
    """bfloat16 halves memory everywhere, but is faster only where the hardware multiplies it: on GPUs, and on few CPUs."""
    is_half = device.type == "cuda" if bf16 == "auto" else bf16
    return torch.bfloat16 if is_half else torch.float32


def _check_weights(report: dict[str, Any], request: ModelRequest) -> None:
    """Refuse what transformers would fill with random numbers under a warning."""
    absent = sorted(str(key) for key in (*report.get("missing_keys", ()), *report.get("mismatched_keys", ())))
    if absent:
        message = f"{len(absent)} weights are missing from the model's files or have other shapes"
        raise BaseModelUnusable(message, path="base_model", value=shorten(", ".join(absent)), hint=f"is {request.base_model} complete?")


def _check_vocabulary(model: Any, tokenizer: Any, request: ModelRequest) -> None:
    rows, words = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if words > rows:
        message = f"the tokenizer has {words} tokens and the model only {rows}"
        raise BaseModelUnusable(message, path="base_model", value=request.base_model, hint="do they belong together?")


def _unusable(what: str, error: Exception, request: ModelRequest) -> WegeftError:
    text = str(error)
    hint = None
    if "trust_remote_code" in text:
        hint = "the model brings its own code; trust_remote_code: true runs it, where the server's policy allows"
    elif isinstance(error, ImportError):
        hint = "install what is missing where the worker runs, or choose another attn_implementation"
    elif "Unrecognized configuration class" in text or "does not recognize this architecture" in text:
        hint = "is it a causal language model?"
    return BaseModelUnusable(f"{what}: {shorten(text, 300)}", path="base_model", value=request.base_model, hint=hint)
