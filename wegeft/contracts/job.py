"""job.yaml: what a job may say, under the names that other trainers use, and every problem of a wrong one at once."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from wegeft.contracts.adapter import AdapterName, check_alias
from wegeft.contracts.errors import InvalidJob, InvalidReference
from wegeft.contracts.job_fields import explain, rename_aliases
from wegeft.contracts.yaml_source import Data, Source, parse_yaml

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$")]
LabelText = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataText = Annotated[str, StringConstraints(max_length=512)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Duration = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*(?:s|m|h|d)$")]
Memory = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*(?:Mi|Gi)$")]
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class DatasetType(StrEnum):
    """How a row says what to learn."""

    CHAT = "chat"
    ALPACA = "alpaca"
    PROMPT_COMPLETION = "prompt_completion"
    COMPLETION = "completion"


class FileFormat(StrEnum):
    """How rows are written in a file."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


class DatasetSpec(_Frozen):
    """One file of rows."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    """A file, relative to the job file, or `sha256:…` of one that the server already has."""
    type: DatasetType | None = None
    """`chat`, `alpaca`, `prompt_completion` or `completion`; by default told from the columns of the first row."""
    file_format: FileFormat | None = None
    """`jsonl`, `json`, `csv` or `parquet`; by default told from the file's ending."""
    field_messages: str = "messages"
    """Column of a chat's list of `{role, content}`."""
    field_instruction: str = "instruction"
    """Column of an alpaca instruction."""
    field_input: str = "input"
    """Column of an alpaca input; may be absent or empty."""
    field_output: str = "output"
    """Column of an alpaca answer."""
    field_prompt: str = "prompt"
    """Column of a prompt."""
    field_completion: str = "completion"
    """Column of a prompt's completion."""
    field_text: str = "text"
    """Column of a plain text, all of which is learnt."""

    @property
    def is_uploaded(self) -> bool:
        """Whether the path names bytes by digest."""
        return bool(re.match(DIGEST_PATTERN, self.path))

    def inferred_format(self) -> FileFormat | None:
        """Return the file's format, said or told by the ending; None where neither tells."""
        if self.file_format:
            return self.file_format
        ending = self.path.rpartition(".")[2].lower()
        endings = {"jsonl": FileFormat.JSONL, "ndjson": FileFormat.JSONL, "json": FileFormat.JSON, "csv": FileFormat.CSV}
        return endings.get(ending) or (FileFormat.PARQUET if ending in ("parquet", "pq") else None)

    @model_validator(mode="after")
    def _has_known_format(self) -> Self:
        if self.inferred_format() is None:
            raise ValueError("file_format: cannot be told from the path; say jsonl, json, csv or parquet")
        return self


class ResourcesSpec(_Frozen):
    """What one worker gets."""

    cpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU cores, and torch threads; by default all of the node that runs the job."""
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs, 0 or 1."""
    memory: Memory | None = None
    """Memory that Ray sets aside, for example `8Gi`; by default none is set aside."""


class RecoverySpec(_Frozen):
    """How often an attempt is made again, from the last checkpoint."""

    max_restarts_on_errors: Annotated[int, Field(ge=0, le=100)] = 1
    """After an unexpected error of the training code. Wrong input is never tried again."""
    max_preemptions: Annotated[int, Field(ge=-1, le=10_000)] = -1
    """After a lost worker, node or lease; -1 is without limit."""


class EvaluationSpec(_Frozen):
    """What is measured on the held-out split, beside its loss."""

    exact_match: bool = False
    """Generate answers greedily and count those equal to the expected one."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Tokens to generate at most for one answer."""
    max_rows: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Held-out rows to answer at most, the first ones."""
    samples: Annotated[int, Field(ge=0, le=16)] = 3
    """Answers to keep in the job's log, to look at."""


class OutputSpec(_Frozen):
    """Where the adapter is published."""

    adapter: str | None = None
    """`namespace/name` in the hub; by default `local/` and the job's name."""
    aliases: tuple[str, ...] = ()
    """Aliases to move to the new version, beside `latest`."""

    @model_validator(mode="after")
    def _names_are_valid(self) -> Self:
        try:
            if self.adapter is not None:
                AdapterName.parse(self.adapter)
            for alias in self.aliases:
                check_alias(alias)
        except InvalidReference as error:
            problem = error.problems[0]
            raise ValueError(f"{'adapter' if self.adapter else 'aliases'}: {problem.message}; {problem.hint}") from error
        return self


class JobSpec(_Frozen):
    """One fine-tuning job."""

    version: Literal[1] = 1
    """Version of this format."""
    name: Slug
    """A word for lists and the default name of the adapter."""
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    """Higher goes first."""
    labels: Annotated[dict[LabelText, LabelText], Field(max_length=16)] = Field(default_factory=dict)
    """Words to filter jobs by."""
    metadata: Annotated[dict[LabelText, MetadataText], Field(max_length=16)] = Field(default_factory=dict)
    """Anything that you want to find again beside the job."""

    base_model: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    """A Hugging Face id, a local folder, or a `.gguf` file."""
    base_model_revision: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    """Branch, tag or commit of a Hugging Face id; the worker pins the commit."""
    trust_remote_code: bool = False
    """Run code that comes with the model; needs the server's policy to allow it."""
    bf16: Literal["auto"] | bool = "auto"
    """Load the base model in bfloat16; `auto` is yes on a GPU and no on a CPU."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel; `auto` leaves it to transformers."""
    chat_template: Annotated[str, StringConstraints(min_length=1, max_length=200_000)] = "tokenizer"
    """`tokenizer`, or a Jinja template, or a `.jinja` file relative to the job file."""

    method: Literal["wegeft"] = "wegeft"
    """How the base model is adapted."""
    rank: Annotated[int, Field(ge=1, le=4096)] = 64
    """Rank of each generator."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """The edit is scaled by alpha / rank; by default twice the rank."""
    target_modules: Literal["all-linear"] | tuple[LabelText, ...] = "all-linear"
    """`all-linear`, or names such as `[q_proj, v_proj]`; each name shares one generator over all layers."""

    datasets: Annotated[tuple[DatasetSpec, ...], Field(min_length=1, max_length=64)]
    """Rows to train on."""
    test_datasets: Annotated[tuple[DatasetSpec, ...], Field(max_length=64)] = ()
    """Rows held out, to measure."""
    val_set_size: Annotated[float, Field(ge=0, lt=1)] | Annotated[int, Field(ge=0)] = 0
    """Share (below 1) or number of training rows to hold out instead."""
    sequence_len: Annotated[int, Field(ge=8, le=1_048_576)] = 1024
    """Tokens of a row at most."""
    excess_length_strategy: Literal["truncate", "drop", "error"] = "truncate"
    """What to do with a longer row."""
    train_on_inputs: bool = False
    """Learn the prompt too, and not only the answer."""

    num_epochs: Annotated[float, Field(gt=0, le=10_000)] = 3
    """Passes over the training rows."""
    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps; when given, it decides instead of num_epochs."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65_536)] = 4
    """Rows in one forward and backward pass."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Passes for one optimizer step; by default global_batch_size / micro_batch_size, or 1."""
    global_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows in one optimizer step; must be micro_batch_size × gradient_accumulation_steps."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 4e-4
    """Highest learning rate, after the warm-up."""
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: Fraction | None = None
    """Share of the steps in which the learning rate rises; 0.1 where neither this nor warmup_steps is given."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Number of those steps instead."""
    optimizer: Literal["adamw_torch"] = "adamw_torch"
    """AdamW of torch."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the second moment."""
    adam_epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this norm; null turns it off."""
    gradient_checkpointing: bool = False
    """Compute activations again instead of keeping them: less memory, more time."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Decides the initial generator, the held-out rows and the order of rows."""

    logging_steps: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps between two progress events."""
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between two measurements; there is always one before and one after."""
    save_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between two checkpoints."""
    save_every: Duration = "60s"
    """Time between two checkpoints, for example `30s` or `5m`; it bounds the work lost with a worker."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many measurements without a lower held-out loss, and keep the best; needs eval_steps."""

    evaluation: EvaluationSpec = EvaluationSpec()
    """What is measured beside the loss."""
    resources: ResourcesSpec = ResourcesSpec()
    """What one worker gets."""
    max_duration: Duration | None = None
    """Fail the job when its attempt runs longer."""
    job_recovery: RecoverySpec = RecoverySpec()
    """How often an attempt is made again."""
    output: OutputSpec = OutputSpec()
    """Where the adapter is published."""

    @model_validator(mode="after")
    def _batch_sizes_agree(self) -> Self:
        if self.global_batch_size is None:
            return self
        rows, rest = divmod(self.global_batch_size, self.micro_batch_size)
        if rest or (self.gradient_accumulation_steps not in (None, rows)):
            raise ValueError("global_batch_size: must be micro_batch_size × gradient_accumulation_steps")
        return self

    @model_validator(mode="after")
    def _one_of_each_pair(self) -> Self:
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("warmup_steps: give warmup_ratio or warmup_steps, not both")
        if self.test_datasets and self.val_set_size:
            raise ValueError("val_set_size: give test_datasets or val_set_size, not both")
        return self

    @model_validator(mode="after")
    def _measures_what_it_needs(self) -> Self:
        has_held_out = bool(self.test_datasets or self.val_set_size)
        if self.early_stopping_patience is not None and not (self.eval_steps and has_held_out):
            raise ValueError("early_stopping_patience: needs eval_steps, and test_datasets or val_set_size")
        if self.evaluation.exact_match and not has_held_out:
            raise ValueError("evaluation.exact_match: needs test_datasets or val_set_size")
        return self

    @property
    def accumulation_steps(self) -> int:
        """Forward and backward passes for one optimizer step."""
        if self.gradient_accumulation_steps is not None:
            return self.gradient_accumulation_steps
        return self.global_batch_size // self.micro_batch_size if self.global_batch_size else 1

    @property
    def effective_alpha(self) -> float:
        """alpha, or twice the rank."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank

    @property
    def adapter(self) -> AdapterName:
        """The adapter that the job publishes."""
        return AdapterName.parse(self.output.adapter or f"local/{self.name}")


def seconds_of(duration: str) -> int:
    """Return the seconds of a duration such as ``90s``, ``5m``, ``12h`` or ``2d``."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[duration[-1]]


def bytes_of(memory: str) -> int:
    """Return the bytes of an amount such as ``512Mi`` or ``8Gi``."""
    return int(memory[:-2]) * {"Mi": 1 << 20, "Gi": 1 << 30}[memory[-2:]]


def load_spec(text: str, overrides: tuple[str, ...] = ()) -> JobSpec:
    """Return the job that a YAML text describes, after ``key=value`` overrides.

    Raises :class:`InvalidJob` with every problem: its line, path, value, and what would be right.
    """
    source = parse_yaml(text)
    return check_spec(override(source, overrides))


def override(source: Source, overrides: tuple[str, ...]) -> Source:
    """Return ``source`` with ``key=value`` or ``outer.inner=value`` set; a value is read as YAML."""
    if not overrides or not isinstance(source.data, dict):
        return source
    data: dict[str, Data] = json.loads(json.dumps(source.data))
    positions = dict(source.positions)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InvalidJob("an override must be key=value", path="-o", value=text, hint="for example -o learning_rate=1e-3")
        steps = key.strip().split(".")
        _set(data, steps, parse_yaml(value).data, text)
        for known in [path for path in positions if [str(step) for step in path[: len(steps)]] == steps]:
            del positions[known]
    return Source(data=data, positions=positions)


def _set(data: Data, steps: list[str], value: Data, text: str) -> None:
    here = data
    for step in steps[:-1]:
        if isinstance(here, list) and step.isdigit() and int(step) < len(here):
            here = here[int(step)]
        elif isinstance(here, dict):
            here = here.setdefault(step, {})
        else:
            raise InvalidJob("the override's path leads nowhere", path="-o", value=text)
    last = steps[-1]
    if isinstance(here, dict):
        here[last] = value
    elif isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = value
    else:
        raise InvalidJob("the override's path leads nowhere", path="-o", value=text)


def check_spec(source: Source) -> JobSpec:
    """Return the job in ``source``; raise :class:`InvalidJob` with every problem found."""
    if not isinstance(source.data, dict):
        raise InvalidJob("a job is a mapping of fields", value=source.data, hint="start with name:, base_model: and datasets:")
    data, problems = rename_aliases(source)
    try:
        spec = JobSpec.model_validate_json(json.dumps(data))
    except ValidationError as error:
        problems += explain(error, source, JobSpec)
        spec = None
    if problems or spec is None:
        count = len(problems)
        raise InvalidJob(f"{count} problem{'s' if count != 1 else ''} in the job file", problems=problems)
    return spec


def parse_spec(data: Data) -> JobSpec:
    """Return the job in plain ``data``, as it comes in a request."""
    return check_spec(Source(data=data))
