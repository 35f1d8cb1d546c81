"""A row to learn from: what it may be, and how one record of a file becomes one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, assert_never

from wegeft.contracts.errors import Problem, shorten
from wegeft.contracts.job import DatasetSpec, DatasetType
from workers.labelled_rows import ANY_TEXT, LabelledImage, LabelledReader, LabelledText, RowRules, read_labelled_image


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a chat."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; every assistant turn is learnt."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction in the form that Stanford Alpaca made known."""

    instruction: str
    input: str
    """Empty where the instruction needs none."""
    output: str


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A text and what follows it, joined as they are."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A text, all of which is learnt."""

    text: str


Row = Chat | Instruction | PromptCompletion | Completion
"""What a language model learns from."""
AnyRow = Row | LabelledText | LabelledImage
"""What any task learns from."""

_TextType = Literal[DatasetType.CHAT, DatasetType.ALPACA, DatasetType.PROMPT_COMPLETION, DatasetType.COMPLETION]

ROLES = ("system", "user", "assistant")
_ROLE_HINTS = {
    "human": "write user",
    "gpt": "write assistant",
    "bot": "write assistant",
    "model": "write assistant",
    "developer": "write system",
    "tool": "tool calls are not supported",
    "function": "tool calls are not supported",
}
_REFUSED_KEYS = ("tool_calls", "function_call", "weight", "images", "audio", "reasoning_content")
"""Keys of a message that would change what is learnt, and that would otherwise be passed over in silence."""


def expected_columns(spec: DatasetSpec) -> tuple[str, ...]:
    """Return every column that a row of the data set may be read from."""
    return (
        spec.field_messages,
        spec.field_instruction,
        spec.field_input,
        spec.field_output,
        spec.field_prompt,
        spec.field_completion,
        spec.field_text,
        *([spec.field_text_pair] if spec.field_text_pair else []),
        spec.field_image,
        spec.field_label,
    )


def infer_type(columns: Mapping[str, object], spec: DatasetSpec, rules: RowRules = ANY_TEXT) -> DatasetType | None:
    """Return the type that the columns of a first row tell, or None."""
    if len(rules.types) == 1:
        return rules.types[0]
    for column, kind in (
        (spec.field_messages, DatasetType.CHAT),
        (spec.field_instruction, DatasetType.ALPACA),
        (spec.field_prompt, DatasetType.PROMPT_COMPLETION),
        (spec.field_text, DatasetType.COMPLETION),
    ):
        if column in columns:
            return kind
    return None


def explain_columns(columns: Mapping[str, object], spec: DatasetSpec) -> Problem:
    """Return the problem of a first row whose columns tell no type."""
    sharegpt = "conversations" in columns
    hint = (
        "for the conversations of ShareGPT, rename the column and write role and content"
        if sharegpt
        else f"one of: {spec.field_messages}; {spec.field_instruction} and {spec.field_output}; "
        f"{spec.field_prompt} and {spec.field_completion}; {spec.field_text}; or name your columns with field_…"
    )
    return Problem(message="the columns tell no type of row", value=shorten(", ".join(map(str, columns)) or "none"), hint=hint)


@dataclass
class _Reader:
    """Takes texts out of one record and keeps what is wrong with them."""

    record: Mapping[str, object]
    problems: list[Problem] = field(default_factory=list)

    def text(self, column: str, missing: str, *, is_optional: bool = False) -> str:
        value = self.record.get(column)
        if value is None or value == "":
            if not is_optional:
                names = ", ".join(map(str, self.record)) or "none"
                hint = None if column in self.record else f"the row's columns are: {shorten(names)}"
                self._complain(column, missing, None, hint)
            return ""
        return self.check_text(column, value, missing, is_optional=is_optional)

    def check_text(self, path: str, value: object, missing: str, *, is_optional: bool = False) -> str:
        if not isinstance(value, str):
            self._complain(path, f"must be a text, not {_kind_of(value)}", value, None)
        elif not value.strip() and not is_optional:
            self._complain(path, missing, value, None)
        elif not _is_unicode(value):
            self._complain(path, "holds half of a surrogate pair, which is no character", None, r"remove the \ud800 to \udfff escapes")
        else:
            return value
        return ""

    def _complain(self, path: str, message: str, value: object, hint: str | None) -> None:
        self.problems.append(Problem(path=path, message=message, value=None if value is None else shorten(value), hint=hint))

    def messages(self, column: str) -> tuple[Turn, ...]:
        value = self.record.get(column)
        if isinstance(value, str):
            value = _from_json(value)
        if not isinstance(value, list) or not value:
            self._complain(column, "must be a list of messages, each with role and content", value, None)
            return ()
        turns = tuple(self._turn(f"{column}[{index}]", message) for index, message in enumerate(value))
        if not self.problems:
            self._check_order(column, [turn.role for turn in turns])
        return turns

    def _turn(self, path: str, message: object) -> Turn:
        if not isinstance(message, dict):
            self._complain(path, "must be a message with role and content", message, None)
            return Turn("", "")
        role = message.get("role")
        if role not in ROLES:
            hint = _ROLE_HINTS.get(role if isinstance(role, str) else "", "one of: system, user, assistant")
            self._complain(f"{path}.role", "not a role" if role is not None else "required, but not given", role, hint)
        for key in _REFUSED_KEYS:
            if message.get(key) not in (None, [], "") and not (key == "weight" and message[key] == 1):
                self._complain(f"{path}.{key}", "not supported", message[key], "leave it out; every assistant message is learnt as text")
        missing = "the answer is empty" if role == "assistant" else "the message is empty"
        content = message.get("content")
        if isinstance(content, list):
            self._complain(f"{path}.content", "must be a text, not a list of parts", content, "join the parts into one text")
            return Turn(str(role), "")
        text = self.check_text(f"{path}.content", "" if content is None else content, missing, is_optional=role == "system")
        return Turn(str(role), text)

    def _check_order(self, column: str, roles: list[str]) -> None:
        speakers = roles[1:] if roles[0] == "system" else roles
        start = len(roles) - len(speakers)
        for index, role in enumerate(speakers):
            expected = "user" if index % 2 == 0 else "assistant"
            if role != expected:
                hint = "a system message may come first, then user and assistant take turns, and user begins"
                self._complain(f"{column}[{start + index}].role", f"{expected} must speak here", role, hint)
                return
        if roles[-1] != "assistant":
            self._complain(column, "the row has no answer at its end", roles[-1], "the last message must be the assistant's")


def make_row(record: object, spec: DatasetSpec, kind: DatasetType, rules: RowRules = ANY_TEXT) -> AnyRow | list[Problem]:
    """Return the row that ``record`` says, or everything that is wrong with it; a problem's path is within the row."""
    if not isinstance(record, dict):
        return [Problem(message=f"a row must be a mapping of columns, not {_kind_of(record)}", value=shorten(record))]
    if kind is DatasetType.LABELLED_IMAGE:
        return read_labelled_image(record, spec, rules)
    reader = _Reader(record)
    row = _labelled_text(reader, spec, rules) if kind is DatasetType.LABELLED_TEXT else _row(reader, spec, kind)
    return reader.problems or row


def _labelled_text(reader: _Reader, spec: DatasetSpec, rules: RowRules) -> LabelledText:
    text = reader.text(spec.field_text, "the text is missing")
    pair = reader.text(spec.field_text_pair, "the second text is missing") if spec.field_text_pair else None
    return LabelledText(text, pair, LabelledReader(reader.record, rules, reader.problems).label(spec.field_label))


def _row(reader: _Reader, spec: DatasetSpec, kind: _TextType) -> Row:
    match kind:
        case DatasetType.CHAT:
            return Chat(reader.messages(spec.field_messages))
        case DatasetType.ALPACA:
            instruction = reader.text(spec.field_instruction, "the instruction is missing")
            context = reader.text(spec.field_input, "", is_optional=True)
            return Instruction(instruction, context, reader.text(spec.field_output, "the answer is missing"))
        case DatasetType.PROMPT_COMPLETION:
            prompt = reader.text(spec.field_prompt, "the prompt is missing")
            return PromptCompletion(prompt, reader.text(spec.field_completion, "the answer is missing"))
        case DatasetType.COMPLETION:
            return Completion(reader.text(spec.field_text, "the text is missing"))
        case _:
            assert_never(kind)


def _from_json(text: str) -> object:
    """Read a column that holds JSON as text, which is how a CSV file can hold a chat."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return f"a {type(value).__name__}"
