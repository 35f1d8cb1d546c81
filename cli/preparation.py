"""A job file and the files that it names, checked together and made ready to send; nothing is sent here."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wegeft.contracts.adapter import is_digest
from wegeft.contracts.errors import InvalidData, InvalidJob, Problem
from wegeft.contracts.federation_spec import StartSpec
from wegeft.contracts.job import DatasetSpec, JobSpec, inspect_spec, override
from wegeft.contracts.job_fields import problem_at, rename_aliases
from wegeft.contracts.yaml_source import MAX_BYTES, Source, parse_yaml

if TYPE_CHECKING:
    from wegeft.contracts.yaml_source import Path as KeyPath

_HUGGING_FACE_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")
_TEMPLATE_BYTES = 200_000


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A local file that a job trains on or is measured on."""

    section: str
    """``datasets`` or ``test_datasets``."""
    index: int
    """Its place in that list."""
    path: Path
    rows: int
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class PreparedJob:
    """A job that is right as far as can be told here."""

    spec: JobSpec
    """With the base model's path absolute and the chat template written out; its data sets still name local files."""
    files: tuple[DataFile, ...]

    def with_digests(self, digests: dict[Path, str]) -> JobSpec:
        """Return the job as it is sent: every local data set named by its digest."""
        lists = {"datasets": list(self.spec.datasets), "test_datasets": list(self.spec.test_datasets)}
        for file in self.files:
            row = lists[file.section][file.index]
            change = {"path": digests[file.path], "file_format": row.inferred_format()}
            lists[file.section][file.index] = row.model_copy(update=change)
        return self.spec.model_copy(update={name: tuple(rows) for name, rows in lists.items()})


def read_job_file(path: Path) -> tuple[str, Path]:
    """Return a job file's text, and the folder that its relative paths start from; ``-`` is standard input and the current folder.

    Raises :class:`InvalidJob` where it cannot be read.
    """
    try:
        raw = sys.stdin.buffer.read(MAX_BYTES + 1) if str(path) == "-" else _read(path, MAX_BYTES + 1)
        return raw.decode("utf-8"), Path.cwd() if str(path) == "-" else path.absolute().parent
    except OSError as error:
        raise InvalidJob(f"the job file cannot be read: {error.strerror}", path=str(path)) from error
    except UnicodeDecodeError as error:
        message = f"the job file is not UTF-8 at byte {error.start + 1}"
        raise InvalidJob(message, path=str(path), hint="save the file as UTF-8") from error


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit)


def prepare(text: str, folder: Path, overrides: tuple[str, ...] = (), *, is_remote: bool = False) -> PreparedJob:
    """Return the job that ``text`` describes, its files found and every row of theirs checked.

    ``is_remote`` says that the job goes to a service elsewhere, where an absolute path may name a model that is not here. Raises
    :class:`InvalidJob`, or :class:`InvalidData` where only rows are wrong, with every problem of all files.
    """
    source = override(parse_yaml(text), overrides)
    found = inspect_spec(source)
    checker = _Checker(source=source, folder=folder, problems=list(found.problems), data_problems=[], is_remote=is_remote)
    spec, files = (None, []) if found.spec is None else checker.check(found.spec, found.wrong)
    problems = [*checker.problems, *checker.data_problems]
    if checker.problems or spec is None:
        raise InvalidJob(_count(problems), problems=problems)
    if problems:
        raise InvalidData(_count(problems), problems=problems)
    return PreparedJob(spec=spec, files=tuple(files))


def _count(problems: list[Problem]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in the job file and its data"


@dataclass(kw_only=True)
class _Checker:
    """Looks at what a job file names, and collects what is wrong."""

    source: Source
    folder: Path
    problems: list[Problem]
    data_problems: list[Problem]
    is_remote: bool

    def check(self, spec: JobSpec, wrong: frozenset[str]) -> tuple[JobSpec, list[DataFile]]:
        change: dict[str, object] = {}
        if "base_model" not in wrong:
            change["base_model"] = self._locate_model(spec)
        if "chat_template" not in wrong:
            change["chat_template"] = self._read_template(spec.chat_template)
        if "federation" not in wrong and spec.federation is not None and spec.federation.start is not None:
            start = spec.federation.start
            found = StartSpec(**{name: self._locate_start(name, getattr(start, name)) for name in ("config", "weights")})
            change["federation"] = spec.federation.model_copy(update={"start": found})
        # What rows must be like hangs on these fields.
        sections = () if wrong & {"task", "problem_type", "label_names"} else ("datasets", "test_datasets")
        files = [file for section in sections if section not in wrong for file in self._check_data(spec, section)]
        return spec.model_copy(update=change), files

    def _complain(self, path: KeyPath, message: str, value: str, hint: str | None = None) -> None:
        data = self.source.data
        written = rename_aliases(data, self.source).path_as_written(path) if isinstance(data, dict) else path
        self.problems.append(problem_at(written, message, value, hint, self.source))

    def _locate_model(self, spec: JobSpec) -> str:
        """Return the absolute path of a local base model, and anything else as it is."""
        text = spec.base_model
        path = _absolute(self.folder, text)
        is_named_as_path = text.startswith(("/", "./", "../", "~")) or text.lower().endswith(".gguf")
        is_model = _is_file(path if text.lower().endswith(".gguf") else path / "config.json")
        if is_model:
            if spec.base_model_revision is not None:
                self._complain(("base_model_revision",), "a local base model has no revisions", spec.base_model_revision, "leave it out")
            return str(path)
        if is_named_as_path and not (self.is_remote and Path(text).is_absolute()):
            what = "the folder holds no config.json" if _is_folder(path) else "there is no such file or folder"
            self._complain(("base_model",), what, text, f"looked for {path}")
        elif not is_named_as_path and not _HUGGING_FACE_ID.fullmatch(text):
            what = "neither a Hugging Face id nor a local model"
            self._complain(("base_model",), what, text, "organisation/model, a folder or a .gguf file")
        return text

    def _locate_start(self, name: str, text: str) -> str:
        """Return the absolute path of a file to start from, and a digest as it is."""
        if is_digest(text):
            return text
        path = _absolute(self.folder, text)
        if not _is_file(path):
            self._complain(("federation", "start", name), "there is no such file", text, f"looked for {path}")
        return str(path)

    def _read_template(self, text: str) -> str:
        """Return the chat template itself where a file is named."""
        if "\n" in text or "{" in text or not text.lower().endswith((".jinja", ".jinja2", ".j2")):
            return text
        path = _absolute(self.folder, text)
        try:
            template = _read(path, _TEMPLATE_BYTES + 1).decode("utf-8")
        except OSError as error:
            self._complain(("chat_template",), f"the file cannot be read: {error.strerror}", text, f"looked for {path}")
        except UnicodeDecodeError as error:
            self._complain(("chat_template",), f"not UTF-8 at byte {error.start + 1}", text, "save the file as UTF-8")
        else:
            if template.strip() and len(template) <= _TEMPLATE_BYTES:
                return template
            self._complain(("chat_template",), "the file is empty or too long", text, f"at most {_TEMPLATE_BYTES} characters")
        return text

    def _check_data(self, spec: JobSpec, section: str) -> Iterator[DataFile]:
        rows: tuple[DatasetSpec, ...] = getattr(spec, section)
        for index, row in enumerate(rows):
            if row.is_uploaded:
                continue
            path = _absolute(self.folder, row.path)
            if not _is_file(path):
                what = "a folder, not a file" if _is_folder(path) else "there is no such file"
                self._complain((section, index, "path"), what, row.path, f"looked for {path}")
                continue
            count = self._count_rows(path, row, spec)
            if count is not None:
                yield DataFile(section=section, index=index, path=path, rows=count, size=path.stat().st_size)

    def _count_rows(self, path: Path, row: DatasetSpec, spec: JobSpec) -> int | None:
        from workers.data import count_rows
        from workers.labelled_rows import RowRules

        try:
            return count_rows(path, row, row.path, RowRules.of(spec))
        except InvalidData as error:
            self.data_problems += error.problems
            return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or a folder that we may not look into
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _absolute(folder: Path, text: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # there is no such user
        path = Path(text)
    return Path(os.path.abspath(folder / path))  # noqa: PTH100 - Path.absolute keeps the dots, and resolve follows links
