"""What this server lets in: a submitted job against its policy, with every problem at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from wegeft.contracts.base_model_name import is_hub_id
from wegeft.contracts.conversion_spec import ConversionSpec
from wegeft.contracts.errors import InvalidJob, PolicyRefused, Problem, shorten
from wegeft.contracts.job import JobSpec


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the operator allows; everything is off by default."""

    allow_local_models: bool = False
    """Whether a job may name a base model by its path on the workers' disks."""
    allow_remote_code: bool = False
    """Whether a job may run code that comes with its base model."""
    max_blob_bytes: int = 4 << 30
    """The longest blob that a worker may store."""
    is_private_by_default: bool = True
    """Whether new adapters are private in a namespace that somebody gets now."""


def check_submission(spec: JobSpec, policy: Policy, size_of: Callable[[str], int | None], known: Sequence[Problem] = ()) -> None:
    """Let a job in, or raise with every reason why not.

    ``size_of`` tells the bytes of a stored blob, or None; ``known`` are problems that were found elsewhere. Raises :class:`InvalidJob`
    for what the job's author must change, and :class:`PolicyRefused` where nothing else is wrong but the server's policy does not allow it.
    """
    problems = [*_label_problems(spec), *_path_problems(spec), *_dataset_problems(spec, size_of), *known]
    refusals = list(_refusals(spec, policy))
    count = len(problems) + len(refusals)
    if problems:
        raise InvalidJob(f"{count} problem{'s' if count != 1 else ''} with the job", problems=[*problems, *refusals])
    if refusals:
        raise PolicyRefused("this server's policy does not allow the job", problems=refusals)


def check_conversion(spec: ConversionSpec, policy: Policy) -> None:
    """Let a conversion in, or raise: :class:`InvalidJob` where no worker can find its base model, and :class:`PolicyRefused`."""
    problems = list(_model_path_problems(spec.base_model))
    if problems:
        raise InvalidJob("the version names its base model by a path that means nothing here", problems=problems)
    refusals = list(_model_refusals(spec.base_model, policy))
    if refusals:
        raise PolicyRefused("this server's policy does not allow the conversion", problems=refusals)


def explain_missing(spec: JobSpec, missing: frozenset[str]) -> InvalidJob:
    """Return what to raise where data sets were collected while the job was being let in."""
    problems = list(_dataset_problems(spec, lambda digest: None if digest in missing else 1))
    return InvalidJob(f"{len(problems)} problem{'s' if len(problems) != 1 else ''} with the job", problems=problems)


def is_local_model(base_model: str) -> bool:
    """Return whether a base model is named by a path on a disk, and not by an id in a model hub."""
    return not is_hub_id(base_model)


def _refusals(spec: JobSpec, policy: Policy) -> Iterator[Problem]:
    if spec.trust_remote_code and not policy.allow_remote_code:
        yield Problem(path="trust_remote_code", message="this server runs no code that comes with a model", hint="leave it out")
    yield from _model_refusals(spec.base_model, policy)


def _model_refusals(base_model: str, policy: Policy) -> Iterator[Problem]:
    if is_local_model(base_model) and not policy.allow_local_models:
        yield Problem(
            path="base_model",
            message="this server takes no models from its disks",
            value=shorten(base_model),
            hint="give a Hugging Face id",
        )


def _model_path_problems(base_model: str) -> Iterator[Problem]:
    if is_local_model(base_model) and not PurePosixPath(base_model).is_absolute():
        yield Problem(
            path="base_model",
            message="a path means nothing here unless it is absolute",
            value=shorten(base_model),
            hint="give the whole path; `wgctl submit` does",
        )


def _path_problems(spec: JobSpec) -> Iterator[Problem]:
    yield from _model_path_problems(spec.base_model)
    if spec.chat_template.endswith(".jinja") and "{" not in spec.chat_template:
        yield Problem(
            path="chat_template",
            message="the server does not read the author's files",
            value=shorten(spec.chat_template),
            hint="send the template's text; `wgctl submit` does",
        )


def _label_problems(spec: JobSpec) -> Iterator[Problem]:
    for key, value in spec.labels.items():
        if not value.isprintable():
            yield Problem(path=f"labels.{key}", message="not printable", value=shorten(value), hint="leave out line breaks and the like")


def _dataset_problems(spec: JobSpec, size_of: Callable[[str], int | None]) -> Iterator[Problem]:
    for field in ("datasets", "test_datasets"):
        for index, dataset in enumerate(getattr(spec, field)):
            path, value = f"{field}[{index}].path", shorten(dataset.path)
            if not dataset.is_uploaded:
                yield Problem(
                    path=path,
                    message="the server does not read the author's files",
                    value=value,
                    hint="upload it and give its digest; `wgctl submit` does",
                )
                continue
            size = size_of(dataset.path)
            if size is None:
                yield Problem(
                    path=path, message="no such data set was uploaded", value=value, hint=f"PUT it to /api/v1/blobs/{dataset.path}"
                )
            elif size == 0:
                yield Problem(path=path, message="the data set is empty", value=value)
