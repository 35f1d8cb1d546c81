"""A row to classify: a text, two texts or an image, and its label."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from wegeft.contracts.errors import InvalidData, Problem, shorten
from wegeft.contracts.job import DatasetSpec, DatasetType, JobSpec, ProblemType
from wegeft.contracts.job_task_rules import ROW_TYPES
from workers.images import decode_image, image_bytes

Label = str | float
"""A name, or in a regression the number to tell."""
_LABEL_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, or two of them, to classify."""

    text: str
    pair: str | None
    label: Label


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """A picture to classify, as PNG or JPEG."""

    content: bytes
    label: Label


@dataclass(frozen=True, kw_only=True)
class RowRules:
    """What a job asks of its rows, beside what it says of each data set."""

    types: tuple[DatasetType, ...]
    label_names: tuple[str, ...] | None = None
    """None where every label is taken."""
    is_regression: bool = False

    @classmethod
    def of(cls, spec: JobSpec) -> RowRules:
        """Return the rules of a job."""
        return cls(types=ROW_TYPES[spec.task], label_names=spec.label_names, is_regression=spec.problem_type is ProblemType.REGRESSION)


ANY_TEXT = RowRules(types=ROW_TYPES[JobSpec.model_fields["task"].default])
"""Those of a language model."""


@dataclass
class LabelledReader:
    """Takes a label, and what bears it, out of one record and keeps what is wrong with them."""

    record: Mapping[str, object]
    rules: RowRules
    problems: list[Problem] = field(default_factory=list)

    def label(self, column: str) -> Label:
        """Return the label, as its name where names are given."""
        value = self.record.get(column)
        if isinstance(value, str):
            value = value.strip()
        if value is None or value == "":
            names = ", ".join(map(str, self.record)) or "none"
            hint = None if column in self.record else f"the row's columns are: {shorten(names)}; or name yours with field_label"
            self._complain(column, "the label is missing", None, hint)
            return ""
        return self._number(column, value) if self.rules.is_regression else self._name(column, value)

    def _number(self, column: str, value: object) -> float:
        try:
            number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or abs(number) > _GREATEST_NUMBER:
            self._complain(column, "must be a number in a regression", value, None)
            return 0.0
        return number

    def _name(self, column: str, value: object) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # Tables with gaps keep whole numbers so.
        if isinstance(value, bool) or not isinstance(value, str | int):
            self._complain(column, "must be a text or a whole number", value, None)
            return ""
        if isinstance(value, int) and value < 0:
            self._complain(column, "must not be negative", value, "data sets mark rows without a label so; leave them out")
        name = str(value)
        if len(name) > _LABEL_CHARACTERS:
            self._complain(column, f"longer than {_LABEL_CHARACTERS} characters", name, "is this the column of the label?")
        return name if self.rules.label_names is None else self._known_name(column, name, self.rules.label_names)

    def _known_name(self, column: str, name: str, known: tuple[str, ...]) -> str:
        if name in known:
            return name
        if name.isascii() and name.isdigit() and int(name[:6]) < len(known):
            return known[int(name[:6])]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of: {shorten(', '.join(known))}"
        self._complain(column, "not one of label_names", name, hint)
        return ""

    def image(self, column: str) -> bytes:
        """Return the picture's bytes, which can be decoded."""
        value = self.record.get(column)
        if value is None:
            hint = None if column in self.record else "name its column with field_image"
            self._complain(column, "the image is missing", None, hint)
            return b""
        try:
            content = image_bytes(value)
            decode_image(content)
        except InvalidData as error:
            self.problems += [problem.model_copy(update={"path": column}) for problem in error.problems]
            return b""
        return content

    def _complain(self, path: str, message: str, value: object, hint: str | None) -> None:
        self.problems.append(Problem(path=path, message=message, value=None if value is None else shorten(value), hint=hint))


_GREATEST_NUMBER = 1e6
"""Its square must stay far within what float32 tells apart from infinity."""


def read_labelled_image(record: Mapping[str, object], spec: DatasetSpec, rules: RowRules) -> LabelledImage | list[Problem]:
    """Return the row that ``record`` says, or everything that is wrong with it."""
    reader = LabelledReader(record, rules)
    row = LabelledImage(reader.image(spec.field_image), reader.label(spec.field_label))
    return reader.problems or row
