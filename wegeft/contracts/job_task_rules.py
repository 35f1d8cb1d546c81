"""What of a job must fit its task: options, rows and the metric that decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wegeft.contracts.job_problems import Clash
from wegeft.contracts.job_sections import DatasetType, FileFormat
from wegeft.contracts.job_tasks import ProblemType, TaskType, metrics_of

if TYPE_CHECKING:
    from wegeft.contracts.job_spec import JobSpec

ROW_TYPES: dict[TaskType, tuple[DatasetType, ...]] = {
    TaskType.CAUSAL_LM: (DatasetType.CHAT, DatasetType.ALPACA, DatasetType.PROMPT_COMPLETION, DatasetType.COMPLETION),
    TaskType.SEQUENCE_CLASSIFICATION: (DatasetType.LABELLED_TEXT,),
    TaskType.IMAGE_CLASSIFICATION: (DatasetType.LABELLED_IMAGE,),
}
"""What the rows of each task may be."""


def task_clashes(spec: JobSpec) -> list[Clash]:
    """Return everything in the job that does not fit its task."""
    return [*_idle_clashes(spec), *_label_clashes(spec), *_dataset_clashes(spec), *_best_clashes(spec)]


def _idle_clashes(spec: JobSpec) -> list[Clash]:
    """Refuse what would do nothing in the job's task."""
    if spec.task is TaskType.CAUSAL_LM:
        idle = {"label_names": spec.label_names, "problem_type": spec.problem_type is ProblemType.REGRESSION}
        message = f"needs task: {TaskType.SEQUENCE_CLASSIFICATION} or {TaskType.IMAGE_CLASSIFICATION}"
    else:
        template = spec.chat_template != "tokenizer"
        idle = {"chat_template": template, "train_on_inputs": spec.train_on_inputs, "sample_packing": spec.sample_packing}
        idle |= {"evaluation.exact_match": spec.evaluation.exact_match}
        message = f"needs task: {TaskType.CAUSAL_LM}"
    return [Clash(path=path, message=message, involves=frozenset({"task"})) for path, is_given in idle.items() if is_given]


def _label_clashes(spec: JobSpec) -> list[Clash]:
    clashes = []
    if spec.problem_type is ProblemType.REGRESSION and spec.task is TaskType.IMAGE_CLASSIFICATION:
        clashes.append(Clash(path="problem_type", message=f"needs task: {TaskType.SEQUENCE_CLASSIFICATION}"))
    if spec.problem_type is ProblemType.REGRESSION and spec.label_names:
        clashes.append(Clash(path="label_names", message="a regression has no labels"))
    if spec.label_names and len(set(spec.label_names)) < len(spec.label_names):
        clashes.append(Clash(path="label_names", message="a name appears twice"))
    return clashes


def _dataset_clashes(spec: JobSpec) -> list[Clash]:
    allowed = ROW_TYPES[spec.task]
    clashes = []
    for section in ("datasets", "test_datasets"):
        for index, dataset in enumerate(getattr(spec, section)):
            at = f"{section}.{index}"
            if dataset.type not in (None, *allowed):
                hint = f"its rows are {' or '.join(allowed)}"
                message = f"no rows for task: {spec.task}"
                clashes.append(Clash(path=f"{at}.type", message=message, hint=hint, involves=frozenset({"task"})))
            elif dataset.inferred_format() is FileFormat.ZIP and spec.task is not TaskType.IMAGE_CLASSIFICATION:
                message = f"a zip of images needs task: {TaskType.IMAGE_CLASSIFICATION}"
                clashes.append(Clash(path=f"{at}.path", message=message, involves=frozenset({"task"})))
    return clashes


def _best_clashes(spec: JobSpec) -> list[Clash]:
    best, known = spec.metric_for_best_model, metrics_of(spec.task, spec.problem_type)
    if best == "eval_loss":
        return []
    if best not in known:
        hint = f"one of: eval_loss, {', '.join(known)}"
        involved = frozenset({"task", "problem_type"})
        return [Clash(path="metric_for_best_model", message="not measured in this task", hint=hint, involves=involved)]
    if spec.early_stopping_patience is None:
        involved = frozenset({"early_stopping_patience"})
        return [Clash(path="metric_for_best_model", message="needs early_stopping_patience", involves=involved)]
    return []
