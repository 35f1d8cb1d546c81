"""What a job with a ``federation:`` section may not say, and what any other must."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wegeft.contracts.job_problems import Clash
from wegeft.contracts.job_tasks import TaskType
from wegeft.contracts.methods import Method

if TYPE_CHECKING:
    from wegeft.contracts.job_spec import JobSpec

_ONE_GENERATOR_A_NAME = (
    "exclude_modules",
    "layers_to_transform",
    "modules_to_save",
    "tied_modules",
    "transform",
    "init_weights",
    "rank_pattern",
    "alpha_pattern",
)
"""Options that a federation does not take: its sites and its server know a generator by the name of the modules that share it."""


def federation_clashes(spec: JobSpec) -> list[Clash]:
    """Return the fields that do not go with a federation, or the data that a job without one lacks."""
    if spec.federation is None:
        return _missing_data(spec)
    return [*_given_data(spec), *_other_kinds(spec), *_given_options(spec), *_scaffold_clashes(spec)]


def _missing_data(spec: JobSpec) -> list[Clash]:
    if spec.datasets:
        return []
    message = "must have at least 1 entry" if "datasets" in spec.model_fields_set else "required, but not given"
    return [Clash(path="datasets", message=message, involves=frozenset({"datasets", "federation"}))]


def _given_data(spec: JobSpec) -> list[Clash]:
    hint = "leave it out, and give the file to `wgctl site run --data` at each site"
    given = [name for name in ("datasets", "test_datasets") if getattr(spec, name)]
    involved = frozenset({"datasets", "federation"})
    return [Clash(path=name, message="a federated job's sites bring their own data", hint=hint, involves=involved) for name in given]


def _other_kinds(spec: JobSpec) -> list[Clash]:
    clashes = []
    if spec.method is not Method.WEGEFT:
        message = "a federation aggregates generators, which only wegeft has"
        clashes.append(Clash(path="method", message=message, hint="method: wegeft", involves=frozenset({"federation"})))
    if spec.task is not TaskType.CAUSAL_LM:
        message = "a federation trains language models, whose adapter is all that is sent"
        clashes.append(Clash(path="task", message=message, hint="task: causal_lm", involves=frozenset({"federation"})))
    return clashes


def _given_options(spec: JobSpec) -> list[Clash]:
    message = "a federated job has one generator for each of target_modules, all of the job's rank"
    given = [name for name in _ONE_GENERATOR_A_NAME if getattr(spec, name) is not None]
    return [Clash(path=name, message=message, hint="leave it out", involves=frozenset({"federation"})) for name in given]


def _scaffold_clashes(spec: JobSpec) -> list[Clash]:
    if spec.federation is None or spec.federation.site_optimizer != "scaffold":
        return []
    found = {
        "weight_decay": (bool(spec.weight_decay), "would be taken for a gradient of the site's rows, as scaffold's steps are plain", "0"),
        "max_grad_norm": (spec.max_grad_norm is None, "is what bounds scaffold's control variates", "a number"),
        "early_stopping_patience": (spec.early_stopping_patience is not None, "would undo steps that scaffold counts", "leave it out"),
    }
    involved = frozenset({"federation"})
    return [Clash(path=path, message=why, hint=hint, involves=involved) for path, (is_wrong, why, hint) in found.items() if is_wrong]
