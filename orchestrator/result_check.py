"""Whether what an attempt has made is what its job asked for: a worker is not taken at its word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from hub.validate import AdapterFacts
from wegeft.contracts.base_model_name import is_commit, is_hub_id
from wegeft.contracts.errors import Problem, ResultMismatch, shorten
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import TrainingResult


def check_result(spec: JobSpec, result: TrainingResult, facts: AdapterFacts) -> None:
    """Return where the adapter is the job's; raise :class:`ResultMismatch` with everything that differs.

    ``facts`` is what the adapter's own bytes say.
    """
    problems = list(_problems(spec, result, facts))
    if problems:
        raise ResultMismatch(problems=problems)


def _problems(spec: JobSpec, result: TrainingResult, facts: AdapterFacts) -> Iterator[Problem]:
    name, _, pin = result.base_model.rpartition("@")
    if name != _model_name(spec.base_model):
        yield _differs("base_model", result.base_model, f"{_model_name(spec.base_model)}@…")
    elif is_commit(spec.base_model_revision or "") and pin != spec.base_model_revision:
        yield _differs("base_model", result.base_model, f"{name}@{spec.base_model_revision}")
    if facts.base_model != spec.base_model:
        yield _differs("adapter_config.json: base_model_name_or_path", facts.base_model, spec.base_model)
    if facts.method != spec.method:
        yield _differs("adapter_config.json: peft_type", facts.method, spec.method)
    elif spec.rank is not None and facts.rank != spec.rank:
        yield _differs("adapter_config.json: r", facts.rank, spec.rank)
    # Other methods store numbers that they have not trained, or leave some out that came to nothing.
    if facts.method == "wegeft" and result.trainable_parameters != facts.parameters:
        yield _differs("trainable_parameters", result.trainable_parameters, facts.parameters)


def _model_name(base_model: str) -> str:
    """Return how a worker calls the model before it pins it: an id as it is, a folder by its path, a GGUF file by its name."""
    if is_hub_id(base_model):
        return base_model
    path = PurePosixPath(base_model)
    return path.name if base_model.lower().endswith(".gguf") else str(path)


def _differs(path: str, value: object, wanted: object) -> Problem:
    return Problem(path=path, message="differs from what the job asked for", value=shorten(value), hint=f"expected {shorten(wanted)}")
