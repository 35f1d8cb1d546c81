"""YAML text to plain data that remembers where each value stood.

Safe by construction: no tags, no aliases (which can blow up), no dates, no repeated keys, a bound on size and depth.
Scalars follow the core schema of YAML 1.2, so that ``2e-4`` is a number, ``no`` is a text and ``12:30`` is not 750.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml

from wegeft.contracts.errors import InvalidJob, Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_DIGITS = 300

Data = None | bool | int | float | str | list["Data"] | dict[str, "Data"]
Path = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Parsed data, and the 1-based line and column of each path in it; None for a value that is not from the file."""

    data: Data
    positions: dict[Path, tuple[int, int] | None] = field(default_factory=dict)


def parse_yaml(text: str) -> Source:
    """Parse one YAML document; raise :class:`InvalidJob` with line and column where it is not plain data."""
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise InvalidJob("the file is too long", value=f"{len(text)} characters", hint=f"at most {MAX_BYTES} bytes")
    loader: _Loader | None = None
    try:
        loader = _Loader(text.removeprefix("\ufeff"))
        node = loader.get_single_node()
        positions: dict[Path, tuple[int, int] | None] = {}
        return Source(data=_Reader(positions).read(node, ()) if node else None, positions=positions)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, text) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not valid YAML: the character U+{error.character:04X} is not allowed"
        raise InvalidJob("not valid YAML", problems=[Problem(message=message, line=line)]) from error
    except RecursionError as error:
        raise InvalidJob("nested too deeply", hint=f"at most {MAX_DEPTH} levels") from error
    finally:
        if loader is not None:
            loader.dispose()


def _not_yaml(error: yaml.MarkedYAMLError, text: str) -> InvalidJob:
    mark = error.problem_mark or error.context_mark
    message = " ".join(part for part in (error.context, error.problem) if part)
    hint = error.note
    if mark is None:
        return InvalidJob("not valid YAML", problems=[Problem(message=f"not valid YAML: {message}", hint=hint)])
    line = text.splitlines()[mark.line : mark.line + 1]
    if "\t" in "".join(line)[: mark.column + 1]:
        hint = "indent with spaces; a tab is not allowed there"
    problem = Problem(message=f"not valid YAML: {message}", hint=hint, line=mark.line + 1, column=mark.column + 1)
    return InvalidJob("not valid YAML", problems=[problem])


_PLAIN = "plain"
_TEXT = "tag:yaml.org,2002:str"
_LIST = "tag:yaml.org,2002:seq"
_MAPPING = "tag:yaml.org,2002:map"


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner, with no aliases and no resolving of scalars by the older rules of YAML 1.1."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _refusal(mark, "aliases (*name) are not allowed", "write the value out")
        return super().compose_node(parent, index)

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool] | bool) -> str:  # noqa: ARG002 - the base class's
        if kind is yaml.ScalarNode:
            return _PLAIN if isinstance(implicit, tuple) and implicit[0] else _TEXT
        return _LIST if kind is yaml.SequenceNode else _MAPPING


class _Reader:
    """Turns nodes into data, noting where each stood."""

    def __init__(self, positions: dict[Path, tuple[int, int] | None]) -> None:
        self._positions = positions

    def read(self, node: yaml.Node, path: Path) -> Data:
        self._positions.setdefault(path, _place(node))
        if len(path) > MAX_DEPTH:
            raise _refusal(node.start_mark, "nested too deeply", f"at most {MAX_DEPTH} levels")
        if node.tag == _MAPPING and isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if node.tag == _LIST and isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*path, index)) for index, child in enumerate(node.value)]
        if node.tag == _TEXT:
            return str(node.value)
        if node.tag == _PLAIN:
            return _read_plain(node)
        raise _refusal(node.start_mark, f"the tag {node.tag} is not plain data")

    def _read_mapping(self, node: yaml.MappingNode, path: Path) -> Data:
        found: dict[str, Data] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or (key_node.tag == _PLAIN and key_node.value == "<<"):
                raise _refusal(key_node.start_mark, "a key must be a plain word")
            key = str(key_node.value)
            if key in found:
                raise _refusal(key_node.start_mark, f"the key '{key}' is given twice")
            self._positions[(*path, key)] = _place(key_node)
            found[key] = self.read(value_node, (*path, key))
        return found


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_FORMS: tuple[tuple[re.Pattern[str], Callable[[str], Data]], ...] = (
    (re.compile(r"|~|null|Null|NULL"), lambda _: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"0o[0-7]+"), lambda text: int(text, 0)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text, 0)),
    (_FLOAT, float),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
)
"""The core schema of YAML 1.2.2, section 10.3.2, in the order in which it is tried."""


def _read_plain(node: yaml.Node) -> Data:
    text = str(node.value)
    read = next((read for form, read in _FORMS if form.fullmatch(text)), None)
    if read is None:
        return text
    if len(text) > MAX_DIGITS:
        raise _refusal(node.start_mark, "a number of too many digits")
    return read(text)


def _refusal(mark: yaml.Mark, message: str, hint: str | None = None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=mark, note=hint)
