"""The fields of job.yaml, what each may hold, and which of them go together."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.job_federation import federation_clashes
from wegeft.contracts.job_problems import Clash, refuse_clashes
from wegeft.contracts.job_sections import (
    DatasetSpec,
    Duration,
    EvaluationSpec,
    Frozen,
    LabelText,
    OutputSpec,
    PathText,
    RecoverySpec,
    ResourcesSpec,
    name_clashes,
)
from wegeft.contracts.job_task_rules import task_clashes
from wegeft.contracts.job_tasks import BestMetric, ProblemType, TaskType
from wegeft.contracts.methods import METHODS, Method, method_clashes

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$")]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$")]
MetadataText = Annotated[str, StringConstraints(max_length=512)]
LabelName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,499}$")]
ModuleNames = Annotated[tuple[ModuleName, ...], Field(min_length=1, max_length=1000)]
Rank = Annotated[int, Field(ge=1, le=4096)]
Alpha = Annotated[float, Field(gt=0, le=1e6)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
StepCount = Annotated[int, Field(ge=1, le=100_000_000)]


class JobSpec(Frozen):
    """One fine-tuning job."""

    version: Literal[1] = 1
    """Version of this format."""
    name: Slug
    """A word for lists and the default name of the adapter."""
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    """Higher goes first."""
    labels: Annotated[dict[LabelKey, LabelText], Field(max_length=16)] = Field(default_factory=dict)
    """Words to filter jobs by."""
    metadata: Annotated[dict[LabelKey, MetadataText], Field(max_length=16)] = Field(default_factory=dict)
    """Anything that you want to find again beside the job."""

    task: TaskType = TaskType.CAUSAL_LM
    """`causal_lm`, `sequence_classification` or `image_classification`; a classifier's head is trained with the adapter."""
    problem_type: ProblemType = ProblemType.SINGLE_LABEL
    """`single_label_classification`, or `regression`, where a label is a number to tell."""
    label_names: Annotated[tuple[LabelName, ...], Field(min_length=2, max_length=10_000)] | None = None
    """What a classifier tells apart; by default the labels of all rows, in order. A row's label is a name, or its place, from 0."""

    base_model: PathText
    """A Hugging Face id, a local folder, or a `.gguf` file."""
    base_model_revision: Annotated[str, StringConstraints(max_length=255, pattern=r"^[\w-]+(?:[./][\w-]+)*$")] | None = None
    """Branch, tag or commit of a Hugging Face id; the worker pins the commit."""
    trust_remote_code: bool = False
    """Run code that comes with the model; needs the server's policy to allow it."""
    bf16: Literal["auto"] | bool = "auto"
    """Load the base model in bfloat16; `auto` is yes on a GPU and no on a CPU."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel; `auto` leaves it to transformers."""
    chat_template: Annotated[str, StringConstraints(min_length=1, max_length=200_000)] = "tokenizer"
    """`tokenizer`, or a Jinja template, or a `.jinja` file relative to the job file."""

    method: Method = Method.WEGEFT
    """How the base model is adapted: `wegeft`, or a method of PEFT to compare it with."""
    rank: Rank | None = None
    """Rank of each generator, or of each layer's change; each method has its own default, 64 for wegeft."""
    alpha: Alpha | None = None
    """The edit is scaled by alpha / rank; by default twice the rank for wegeft and lora."""
    target_modules: Literal["all-linear"] | tuple[LabelText, ...] = "all-linear"
    """`all-linear`, or names such as `[q_proj, v_proj]`."""
    exclude_modules: ModuleNames | None = None
    """Names of modules to leave out."""
    layers_to_transform: Annotated[tuple[Annotated[int, Field(ge=0, le=9999)], ...], Field(min_length=1, max_length=1000)] | None = None
    """Numbers of the blocks to adapt, from 0; by default all."""
    modules_to_save: ModuleNames | None = None
    """Ends of the names of modules to train in full and publish beside the adapter, such as `lm_head`."""
    tied_modules: Literal["module_type", "layer", "width"] | Annotated[tuple[ModuleNames, ...], Field(min_length=1)] | None = None
    """Which layers share a generator: those of one `module_type` (default), of one input `width`, none (`layer`), or groups of names such
    as `[[q_proj, k_proj, v_proj], [gate_proj, up_proj]]`."""
    transform: Literal["input", "output"] | None = None
    """Edit what a layer reads, `input` (default), or what it writes, `output`."""
    init_weights: Literal["phi_zero", "psi_zero", "orthogonal"] | None = None
    """`phi_zero` (default) with a random ψ, `psi_zero` with a random φ, or `orthogonal`: φ zero and the rows of ψ orthonormal."""
    weight_dropout: Probability | None = None
    """Chance that an entry of the frozen weight is hidden from the generator in training, as published; by default 0."""
    dropout: Probability | None = None
    """Chance that an entry of what the adapter reads is dropped in training; by default 0."""
    rank_pattern: Annotated[dict[ModuleName, Rank], Field(max_length=1000)] | None = None
    """Another rank for some modules, by name; equal for all that share a generator."""
    alpha_pattern: Annotated[dict[ModuleName, Alpha], Field(max_length=1000)] | None = None
    """Another alpha for some modules, by name; equal for all that share a generator."""
    block_size: Annotated[int, Field(ge=2, le=4096)] | None = None
    """Size of a block of oft, boft, road, c3a or vblora; by default the largest sensible one that divides every target's width."""

    datasets: Annotated[tuple[DatasetSpec, ...], Field(max_length=64)] = ()
    """Rows to train on; required, but for a federated job, whose sites bring their own."""
    test_datasets: Annotated[tuple[DatasetSpec, ...], Field(max_length=64)] = ()
    """Rows held out, to measure."""
    val_set_size: Annotated[float, Field(ge=0, lt=1)] | Annotated[int, Field(ge=0, le=100_000_000)] = 0
    """Share (below 1) or number of training rows to hold out instead."""
    sequence_len: Annotated[int, Field(ge=8, le=1_048_576)] = 1024
    """Tokens of a row at most."""
    excess_length_strategy: Literal["truncate", "drop", "error"] = "truncate"
    """What to do with a longer row."""
    sample_packing: bool = False
    """Fill sequences of up to sequence_len tokens with several rows, none of which sees another, and count those instead of rows."""
    train_on_inputs: bool = False
    """Learn the prompt too, and not only the answer."""

    num_epochs: Annotated[float, Field(gt=0, le=10_000)] = 3
    """Passes over the training rows."""
    max_steps: StepCount | None = None
    """Optimizer steps; when given, it decides instead of num_epochs."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65_536)] = 4
    """Rows in one forward and backward pass; with sample_packing, packed sequences."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Passes for one optimizer step; by default global_batch_size / micro_batch_size, or 1."""
    global_batch_size: StepCount | None = None
    """Rows, or packed sequences, in one optimizer step; must be micro_batch_size × gradient_accumulation_steps."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 4e-4
    """Highest learning rate, after the warm-up."""
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: Fraction | None = None
    """Share of the steps in which the learning rate rises; 0.1 where neither this nor warmup_steps is given."""
    warmup_steps: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
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

    logging_steps: StepCount = 1
    """Optimizer steps between two progress events."""
    eval_steps: StepCount | None = None
    """Optimizer steps between two measurements; there is always one before and one after."""
    save_steps: StepCount | None = None
    """Optimizer steps between two checkpoints."""
    save_every: Duration = "60s"
    """Time between two checkpoints, for example `30s` or `5m`; it bounds the work lost with a worker."""
    early_stopping_patience: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Stop after so many measurements without a better one, and keep the best; needs eval_steps."""
    metric_for_best_model: BestMetric = "eval_loss"
    """What is better with early stopping: a lower `eval_loss` or `perplexity`, or more of another metric of the task."""

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
    federation: FederationSpec | None = None
    """Train at sites that keep their data: rounds, quorum, and how updates become one generator."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        clashes = [*self._batch_clashes(), *self._pair_clashes(), *self._measurement_clashes(), *self._default_name_clashes()]
        refuse_clashes([*clashes, *federation_clashes(self), *task_clashes(self), *method_clashes(self)])
        return self

    def _batch_clashes(self) -> list[Clash]:
        if self.global_batch_size is None:
            return []
        passes, rest = divmod(self.global_batch_size, self.micro_batch_size)
        if not rest and self.gradient_accumulation_steps in (None, passes):
            return []
        message = f"must be micro_batch_size ({self.micro_batch_size}) × gradient_accumulation_steps"
        involved = frozenset({"micro_batch_size", "gradient_accumulation_steps"})
        return [Clash(path="global_batch_size", message=message, hint="leave one of the three out", involves=involved)]

    def _pair_clashes(self) -> list[Clash]:
        clashes = []
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            clashes.append(Clash(path="warmup_steps", message="give warmup_ratio or warmup_steps, not both"))
        if self.test_datasets and self.val_set_size:
            clashes.append(Clash(path="val_set_size", message="give test_datasets or val_set_size, not both"))
        return clashes

    def _measurement_clashes(self) -> list[Clash]:
        clashes = []
        has_held_out = bool(self.test_datasets or self.val_set_size)
        held_out = frozenset({"test_datasets", "val_set_size"})
        if self.early_stopping_patience is not None and not (self.eval_steps and has_held_out):
            message = "needs eval_steps, and test_datasets or val_set_size"
            clashes.append(Clash(path="early_stopping_patience", message=message, involves=held_out | {"eval_steps"}))
        if self.evaluation.exact_match and not has_held_out:
            clashes.append(Clash(path="evaluation.exact_match", message="needs test_datasets or val_set_size", involves=held_out))
        return clashes

    def _default_name_clashes(self) -> list[Clash]:
        if self.output.adapter is not None or not name_clashes("name", f"local/{self.name}"):
            return []
        message = "cannot be an adapter's name"
        return [Clash(path="name", message=message, hint="choose another, or give output.adapter", involves=frozenset({"output"}))]

    @property
    def kind(self) -> Literal["training"]:
        """What tells it from a conversion's."""
        return "training"

    @property
    def accumulation_steps(self) -> int:
        """Forward and backward passes for one optimizer step."""
        if self.gradient_accumulation_steps is not None:
            return self.gradient_accumulation_steps
        return self.global_batch_size // self.micro_batch_size if self.global_batch_size else 1

    @property
    def effective_rank(self) -> int:
        """The rank, or the method's default; 0 where it has none."""
        return self.rank or METHODS[self.method].rank or 0

    @property
    def effective_alpha(self) -> float:
        """The alpha, or the method's default for the rank; 0 where it has none."""
        return self.alpha if self.alpha is not None else (METHODS[self.method].alpha_per_rank or 0.0) * self.effective_rank

    def count_held_out(self, rows: int) -> int:
        """Return how many of ``rows`` training rows ``val_set_size`` holds out; a share holds out at least one."""
        return max(1, round(rows * self.val_set_size)) if 0 < self.val_set_size < 1 else int(self.val_set_size)

    def count_steps(self, rows: int) -> int | None:
        """Return the optimizer steps over ``rows`` rows that are left to train on; the last step of an epoch may hold fewer.

        None where rows are packed and ``num_epochs`` decides: how many sequences they fill depends on their tokens, which a worker counts.
        """
        if self.sample_packing:
            return self.max_steps
        batches = math.ceil(rows / self.micro_batch_size)
        steps_per_epoch = math.ceil(batches / self.accumulation_steps)
        return self.max_steps or max(1, math.ceil(self.num_epochs * steps_per_epoch - 1e-9))

    @property
    def adapter(self) -> AdapterName:
        """The adapter that the job publishes."""
        return AdapterName.parse(self.output.adapter or f"local/{self.name}")
