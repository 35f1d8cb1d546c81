"""The nested parts of a job: data sets, resources, recovery, evaluation and output."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from wegeft.contracts.adapter import LATEST, AdapterName, check_alias
from wegeft.contracts.errors import InvalidReference
from wegeft.contracts.job_problems import Clash, refuse_clashes
from wegeft.contracts.visibility import Visibility

LabelText = Annotated[str, StringConstraints(min_length=1, max_length=64)]
PathText = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,4096}$")]
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Duration = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}(?:s|m|h|d)$")]
Memory = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,6}(?:Mi|Gi)$")]
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ENDINGS = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "csv": "csv", "parquet": "parquet", "pq": "parquet", "zip": "zip"}


class Frozen(BaseModel):
    """A part of a job: nothing is converted, nothing unknown is taken, nothing changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class DatasetType(StrEnum):
    """How a row says what to learn."""

    CHAT = "chat"
    ALPACA = "alpaca"
    PROMPT_COMPLETION = "prompt_completion"
    COMPLETION = "completion"
    LABELLED_TEXT = "labelled_text"
    LABELLED_IMAGE = "labelled_image"


class FileFormat(StrEnum):
    """How rows are written in a file."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    ZIP = "zip"


class DatasetSpec(Frozen):
    """One file of rows."""

    path: PathText
    """A file, relative to the job file, or `sha256:…` of one that the server already has."""
    type: DatasetType | None = None
    """`chat`, `alpaca`, `prompt_completion` or `completion`, by default told from the columns of the first row; a classifier's rows are
    `labelled_text` or `labelled_image`."""
    file_format: FileFormat | None = None
    """`jsonl`, `json`, `csv`, `parquet`, or `zip` of images in a folder for each label; by default told from the file's ending."""
    field_messages: ColumnName = "messages"
    """Column of a chat's list of `{role, content}`."""
    field_instruction: ColumnName = "instruction"
    """Column of an alpaca instruction."""
    field_input: ColumnName = "input"
    """Column of an alpaca input; may be absent or empty."""
    field_output: ColumnName = "output"
    """Column of an alpaca answer."""
    field_prompt: ColumnName = "prompt"
    """Column of a prompt."""
    field_completion: ColumnName = "completion"
    """Column of a prompt's completion."""
    field_text: ColumnName = "text"
    """Column of a plain text, all of which is learnt, or of the text to classify."""
    field_text_pair: ColumnName | None = None
    """Column of a second text, to classify together with the first; by default there is none."""
    field_image: ColumnName = "image"
    """Column of a PNG or JPEG: its bytes, as base64 in a text format, by themselves or in a mapping's `bytes`."""
    field_label: ColumnName = "label"
    """Column of a label, a text or a whole number; in a regression, of the number to tell."""

    @property
    def is_uploaded(self) -> bool:
        """Whether the path names bytes by digest."""
        return bool(_DIGEST.fullmatch(self.path))

    def inferred_format(self) -> FileFormat | None:
        """Return the file's format, said or told by the ending; None where neither tells."""
        if self.file_format:
            return self.file_format
        ending = _ENDINGS.get(self.path.rpartition(".")[2].lower())
        return FileFormat(ending) if ending else None

    @model_validator(mode="after")
    def _has_known_format(self) -> Self:
        if self.inferred_format() is None:
            message = "cannot be told from the path's ending"
            refuse_clashes([Clash(path="file_format", message=message, hint="say jsonl, json, csv, parquet or zip")])
        return self


class ResourcesSpec(Frozen):
    """What one worker gets."""

    cpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU cores, and torch threads; by default all of the node that runs the job."""
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs, 0 or 1."""
    memory: Memory | None = None
    """Memory that Ray sets aside, for example `8Gi`; by default none is set aside."""


class RecoverySpec(Frozen):
    """How often an attempt is made again, from the last checkpoint."""

    max_restarts_on_errors: Annotated[int, Field(ge=0, le=100)] = 1
    """After an unexpected error of the training code. Wrong input is never tried again."""
    max_preemptions: Annotated[int, Field(ge=-1, le=10_000)] = -1
    """After a lost worker, node or lease; -1 is without limit, as long as one attempt in five leaves a newer checkpoint."""


class EvaluationSpec(Frozen):
    """What is measured on the held-out split, beside its loss and what every job of the task measures."""

    exact_match: bool = False
    """Generate answers greedily and count those equal to the expected one."""
    match: Literal["equality", "regex", "last_number"] = "equality"
    """What of both answers must be equal: all of the text, what `regex` finds, or the last number, to 0.001."""
    regex: Annotated[str, StringConstraints(min_length=1, max_length=500)] | None = None
    """An expression, such as `#### (-?[0-9.,]+)`: its first group counts, or all that it matches."""
    regex_pick: Literal["first", "last"] = "last"
    """Which match of `regex` counts, where there are several."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Tokens to generate at most for one answer."""
    max_rows: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Held-out rows to answer at most, the first ones."""
    samples: Annotated[int, Field(ge=0, le=16)] = 3
    """Answers to keep in the job's log, to look at."""

    @model_validator(mode="after")
    def _match_is_whole(self) -> Self:
        refuse_clashes(self._match_clashes())
        return self

    def _match_clashes(self) -> list[Clash]:
        if self.match != "equality" and not self.exact_match:
            return [Clash(path="match", message="needs exact_match: true")]
        if (self.regex is not None) != (self.match == "regex"):
            missing = self.regex is None
            return [Clash(path="match" if missing else "regex", message="needs regex" if missing else "needs match: regex")]
        try:
            re.compile(self.regex or "")
        except (re.error, RecursionError, OverflowError) as error:
            return [Clash(path="regex", message=f"not a regular expression: {error}")]
        return []


class OutputSpec(Frozen):
    """Where the adapter is published."""

    adapter: str | None = None
    """`namespace/name` in the hub; by default `local/` and the job's name."""
    aliases: tuple[str, ...] = ()
    """Aliases to move to the new version, beside `latest`."""
    visibility: Visibility | None = None
    """Who sees the adapter, where it is new: `private` or `public`; by default as its namespace has it."""

    @model_validator(mode="after")
    def _names_are_valid(self) -> Self:
        refuse_clashes([*name_clashes("adapter", self.adapter), *self._alias_clashes()])
        return self

    def _alias_clashes(self) -> list[Clash]:
        clashes = []
        for index, alias in enumerate(self.aliases):
            try:
                check_alias(alias)
            except InvalidReference as error:
                clashes.append(Clash(path=f"aliases.{index}", message=error.message, hint=error.problems[0].hint))
            if alias == LATEST:
                clashes.append(Clash(path=f"aliases.{index}", message="moves by itself", hint="leave it out"))
        return clashes


def name_clashes(path: str, name: str | None) -> list[Clash]:
    """Return what is wrong with an adapter's name, if one is given."""
    if name is None:
        return []
    try:
        AdapterName.parse(name)
    except InvalidReference as error:
        problem = error.problems[0]
        return [Clash(path=path, message=problem.message, hint=problem.hint)]
    return []


def seconds_of(duration: str) -> int:
    """Return the seconds of a duration such as ``90s``, ``5m``, ``12h`` or ``2d``."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[duration[-1]]


def bytes_of(memory: str) -> int:
    """Return the bytes of an amount such as ``512Mi`` or ``8Gi``."""
    return int(memory[:-2]) * {"Mi": 1 << 20, "Gi": 1 << 30}[memory[-2:]]
