"""What a classifier tells apart, told from the rows where the job does not name it."""

from __future__ import annotations

from collections.abc import Sequence

from wegeft.contracts.errors import InvalidData, shorten
from wegeft.contracts.job import JobSpec, ProblemType, TaskType
from workers.labelled_rows import LabelledImage, LabelledText
from workers.rows import AnyRow

LABELS_LIMIT = 10_000


def find_labels(spec: JobSpec, rows: Sequence[AnyRow]) -> tuple[str, ...]:
    """Return the names of the labels in the order of the model's outputs; none for a regression or a language model.

    Names from the data are sorted, by their number where all are whole numbers. Raises ``InvalidData`` if there are fewer than two, or
    more than ``LABELS_LIMIT``.
    """
    if spec.task is TaskType.CAUSAL_LM or spec.problem_type is ProblemType.REGRESSION:
        return ()
    if spec.label_names:
        return spec.label_names
    found = {str(row.label) for row in rows if isinstance(row, LabelledText | LabelledImage)}
    if len(found) < 2:
        hint = "a classifier tells at least two apart; name them all with label_names if these rows have only one"
        raise InvalidData("all rows have the same label", path="datasets", value=shorten(", ".join(found)), hint=hint)
    if len(found) > LABELS_LIMIT:
        hint = "is field_label the column of the label? For numbers to tell, problem_type: regression"
        raise InvalidData(f"the rows have {len(found):,} labels, and may have {LABELS_LIMIT:,}", path="datasets", hint=hint)
    if all(name.isascii() and name.isdigit() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))
