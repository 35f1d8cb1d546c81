"""The frozen model that a job adapts, with its tokenizer or image processor, loaded from an id, a folder or a GGUF file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

import torch

from wegeft.contracts.errors import BaseModelUnusable, NoCapacity, OutOfMemory, WegeftError, shorten
from wegeft.contracts.job import JobSpec, TaskType
from workers.gguf_model import plain_folder
from workers.heads import Head, prepare_head, split_missing
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
    head: Head | None = None
    """None for a language model."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A frozen model on its device: a causal language model, or a classifier with its head."""

    model: Any
    tokenizer: Any
    """None for a model that reads images."""
    identity: str
    """What was loaded, exactly; see ``ModelSource.identity``."""
    commit: str | None
    license: str | None
    former_identity: str | None = None
    """What a checkpoint may name it too; see ``ModelSource.former_identity``."""
    processor: Any = None
    """Makes what the model reads from images; None for a model that reads text."""
    head: Head | None = None
    """None for a language model."""
    config_digest: str | None = None
    """Of its ``config.json``; None where it has none, as a GGUF file."""
    head_modules: tuple[str, ...] = ()
    """Modules to train in full beside the adapter, and to store with it."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device


def default_cache() -> Path:
    """Return where converted GGUF files are kept: beside the models that the Hugging Face libraries keep."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "wegeft" / "gguf"


def request_of(spec: JobSpec, cache: Path | None = None, labels: tuple[str, ...] = ()) -> ModelRequest:
    """Return the request of a job, whose classifier tells ``labels`` apart."""
    return ModelRequest(
        base_model=spec.base_model,
        revision=spec.base_model_revision,
        bf16=spec.bf16,
        attn_implementation=spec.attn_implementation,
        trust_remote_code=spec.trust_remote_code,
        gpus=spec.resources.gpus,
        cache=cache,
        head=None if spec.task is TaskType.CAUSAL_LM else Head(task=spec.task, labels=labels, seed=spec.seed),
    )


def load_base_model(request: ModelRequest) -> BaseModel:
    """Load the model and what makes its input; the model is in evaluation mode and none of its weights wants a gradient.

    Raises ``BaseModelNotFound``, ``BaseModelUnusable``, ``OutOfMemory``, or ``NoCapacity`` where a GPU is asked for and torch sees none.
    """
    device = _device(request)
    with _LOADING, _quiet_libraries():
        source = find_model(request.base_model, request.revision, with_code=request.trust_remote_code)
        with _folder_of(source, request.cache) as folder:
            reads_images = request.head is not None and request.head.task is TaskType.IMAGE_CLASSIFICATION
            processor = _load_processor(folder, request) if reads_images else None
            tokenizer = None if reads_images else _load_tokenizer(folder, request)
            model, new = _load_model(folder, request, device)
    if tokenizer is not None:
        _check_vocabulary(model, tokenizer, request)
    if tokenizer is not None and request.head is not None:
        _agree_on_padding(model, tokenizer, request)
    model.requires_grad_(requires_grad=False)
    model.eval()
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        identity=source.identity,
        commit=source.commit,
        license=source.license,
        former_identity=source.former_identity,
        config_digest=source.config_digest,
        processor=processor,
        head=request.head,
        head_modules=prepare_head(model, new, request.head.seed) if request.head else (),
    )


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
    """Keep progress bars out of a service's log, and reports of missing weights, which are judged here."""
    from transformers.utils import logging

    was_on, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # Turns off those of huggingface_hub too.
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if was_on:
            logging.enable_progress_bar()


def _load_tokenizer(folder: Path, request: ModelRequest) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=request.trust_remote_code)
    except Exception as error:
        raise _unusable("its tokenizer cannot be loaded", error, request) from error


def _load_processor(folder: Path, request: ModelRequest) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=request.trust_remote_code)
    except Exception as error:
        raise _unusable("its image processor cannot be loaded", error, request) from error


def _load_model(folder: Path, request: ModelRequest, device: torch.device) -> tuple[Any, tuple[str, ...]]:
    """Return the model, and the modules that its files do not hold and that a head brings."""
    import transformers

    loader = getattr(transformers, loader_name(request.head.task if request.head else TaskType.CAUSAL_LM))
    options: dict[str, Any] = {} if request.attn_implementation == "auto" else {"attn_implementation": request.attn_implementation}
    if request.head is not None:
        options |= {"num_labels": request.head.outputs, "ignore_mismatched_sizes": True}
    try:
        model, report = loader.from_pretrained(
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
    return model, _check_weights(report, request)


def loader_name(task: TaskType) -> str:
    """Return the class of transformers that loads a model for ``task``."""
    match task:
        case TaskType.CAUSAL_LM:
            return "AutoModelForCausalLM"
        case TaskType.SEQUENCE_CLASSIFICATION:
            return "AutoModelForSequenceClassification"
        case TaskType.IMAGE_CLASSIFICATION:
            return "AutoModelForImageClassification"
        case _:
            assert_never(task)


def _dtype(bf16: Literal["auto"] | bool, device: torch.device) -> torch.dtype:
    """bfloat16 halves memory everywhere, but is faster only where the hardware multiplies it: on GPUs, and on few CPUs."""
    is_half = device.type == "cuda" if bf16 == "auto" else bf16
    return torch.bfloat16 if is_half else torch.float32


def _check_weights(report: dict[str, Any], request: ModelRequest) -> tuple[str, ...]:
    """Refuse what transformers would fill with random numbers under a warning; return the modules of a head that begins anew."""
    mismatched = (key if isinstance(key, str) else key[0] for key in report.get("mismatched_keys", ()))
    absent = sorted({*map(str, report.get("missing_keys", ())), *mismatched})
    new, broken = split_missing(absent) if request.head else ((), tuple(absent))
    if broken:
        message = f"{len(broken)} weights are missing from the model's files or have other shapes"
        raise BaseModelUnusable(message, path="base_model", value=shorten(", ".join(broken)), hint=f"is {request.base_model} complete?")
    return new


def _agree_on_padding(model: Any, tokenizer: Any, request: ModelRequest) -> None:
    """Give both the same token for padding: decoders find a row's last token by it, and many have none."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            message = "its tokenizer has neither a padding nor an end token"
            raise BaseModelUnusable(message, path="base_model", value=request.base_model)
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


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
        kind = "a causal language model" if request.head is None else f"a model for {request.head.task.replace('_', ' ')}"
        hint = f"is it {kind}?"
    return BaseModelUnusable(f"{what}: {shorten(text, 300)}", path="base_model", value=request.base_model, hint=hint)
