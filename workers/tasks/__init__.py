"""The kinds of work that a job can be, each behind the same few questions; see ``task.Task``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, assert_never

import numpy as np

from wegeft.contracts.errors import InvalidData
from wegeft.contracts.job import JobSpec, TaskType
from workers.base_model import BaseModel
from workers.batches import hold_out
from workers.labelled_rows import LabelledImage, LabelledText
from workers.rows import AnyRow
from workers.tasks.classification import ClassificationTask, Split, check_best_metric
from workers.tasks.language import language_task
from workers.tasks.pictures import picture_inputs
from workers.tasks.task import Task
from workers.tasks.texts import text_inputs

_Kind = TypeVar("_Kind")


def prepare_task(spec: JobSpec, base: BaseModel, rows: Sequence[AnyRow], held_out_rows: Sequence[AnyRow]) -> Task:
    """Return the job's rows, ready for ``base``; with ``val_set_size``, some of ``rows`` are held out.

    Raises ``InvalidData`` or ``InvalidJob`` if the rows cannot be trained on.
    """
    if spec.val_set_size:
        kept, held = hold_out(len(rows), spec.val_set_size, spec.seed)
        rows, held_out_rows = [rows[row] for row in kept], [rows[row] for row in held]
    match spec.task:
        case TaskType.CAUSAL_LM:
            said = ([row for row in split if not isinstance(row, LabelledText | LabelledImage)] for split in (rows, held_out_rows))
            return language_task(spec, base, *map(_checked, (rows, held_out_rows), said))
        case TaskType.SEQUENCE_CLASSIFICATION:
            texts = ([row for row in split if isinstance(row, LabelledText)] for split in (rows, held_out_rows))
            return _text_task(spec, base, *map(_checked, (rows, held_out_rows), texts))
        case TaskType.IMAGE_CLASSIFICATION:
            images = ([row for row in split if isinstance(row, LabelledImage)] for split in (rows, held_out_rows))
            return _picture_task(spec, base, *map(_checked, (rows, held_out_rows), images))
        case _:
            assert_never(spec.task)


def _checked(rows: Sequence[AnyRow], fitting: list[_Kind]) -> list[_Kind]:
    if len(fitting) < len(rows):
        raise InvalidData("the data sets hold rows of another task", path="datasets", hint="does the job's task fit them?")
    return fitting


def _text_task(spec: JobSpec, base: BaseModel, rows: list[LabelledText], held_out: list[LabelledText]) -> Task:
    labels = _labels_of(spec, base)
    inputs, notes = text_inputs(spec, base, rows, "datasets")
    measured, more = text_inputs(spec, base, held_out, "test_datasets") if held_out else (None, ())
    return ClassificationTask(
        spec=spec,
        labels=labels,
        train=Split(inputs=inputs, targets=_targets(inputs.rows, labels)),
        held_out=Split(inputs=measured, targets=_targets(measured.rows, labels)) if measured else None,
        notes=(*notes, *more),
    )


def _picture_task(spec: JobSpec, base: BaseModel, rows: list[LabelledImage], held_out: list[LabelledImage]) -> Task:
    labels = _labels_of(spec, base)
    train, measured = (Split(inputs=picture_inputs(base, split), targets=_targets(split, labels)) for split in (rows, held_out))
    return ClassificationTask(spec=spec, labels=labels, train=train, held_out=measured if held_out else None)


def _labels_of(spec: JobSpec, base: BaseModel) -> tuple[str, ...]:
    labels = base.head.labels if base.head else ()
    check_best_metric(spec, labels)
    return labels


def _targets(
    rows: Sequence[LabelledText | LabelledImage], labels: tuple[str, ...]
) -> np.ndarray[tuple[int], np.dtype[np.int64]] | np.ndarray[tuple[int], np.dtype[np.float64]]:
    if not labels:
        return np.array([float(row.label) for row in rows], dtype=np.float64)
    places = {name: place for place, name in enumerate(labels)}
    return np.array([places[str(row.label)] for row in rows], dtype=np.int64)
