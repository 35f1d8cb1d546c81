"""YAML text to plain data that remembers where each value stood.

Safe by construction: no tags, no anchors or aliases (which can blow up), no dates, no repeated keys, a bound on size and depth.
Numbers follow YAML 1.2, so that ``2e-4`` is a number and not a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

from wegeft.contracts.errors import InvalidJob, Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

Data = None | bool | int | float | str | list["Data"] | dict[str, "Data"]
Path = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Parsed data, and the 1-based line and column of each path in it."""

    data: Data
    positions: dict[Path, tuple[int, int]] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    pass


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+|[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Source:
    """Parse one YAML document; raise :class:`InvalidJob` with line and column where it is not plain data."""
    if len(text.encode()) > MAX_BYTES:
        raise InvalidJob("the file is too long", value=f"{len(text)} characters", hint=f"at most {MAX_BYTES} bytes")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        positions: dict[Path, tuple[int, int]] = {}
        return Source(data=_Reader(loader, positions).read(node, (), frozenset()) if node else None, positions=positions)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = {"line": mark.line + 1, "column": mark.column + 1} if mark else {}
        message = " ".join(part for part in (error.context, error.problem) if part)
        raise InvalidJob("not valid YAML", problems=[Problem(message=f"not valid YAML: {message}", **where)]) from error
    except yaml.YAMLError as error:
        raise InvalidJob(f"not valid YAML: {error}") from error
    except RecursionError as error:
        raise InvalidJob("nested too deeply", hint=f"at most {MAX_DEPTH} levels") from error
    finally:
        loader.dispose()


class _Reader:
    def __init__(self, loader: _Loader, positions: dict[Path, tuple[int, int]]) -> None:
        self._loader = loader
        self._positions = positions

    def read(self, node: yaml.Node, path: Path, above: frozenset[int]) -> Data:
        self._positions.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        if len(path) > MAX_DEPTH:
            raise _refusal(node, "nested too deeply")
        if id(node) in above:
            raise _refusal(node, "an alias that contains itself")
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path, above | {id(node)})
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*path, index), above | {id(node)}) for index, child in enumerate(node.value)]
        return self._read_scalar(node)

    def _read_mapping(self, node: yaml.MappingNode, path: Path, above: frozenset[int]) -> Data:
        found: dict[str, Data] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise _refusal(key_node, "a key must be a plain word")
            key = str(key_node.value)
            if key in found:
                raise _refusal(key_node, f"the key '{key}' is given twice")
            self._positions[(*path, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            found[key] = self.read(value_node, (*path, key), above)
        return found

    def _read_scalar(self, node: yaml.Node) -> Data:
        try:
            value = self._loader.construct_object(node)
        except ValueError as error:
            raise _refusal(node, str(error)) from error
        if value is not None and not isinstance(value, bool | int | float | str):
            raise _refusal(node, f"the tag {node.tag} is not plain data")
        return value  # type: ignore[no-any-return]  # construct_object is untyped; the check above narrows it


def _refusal(node: yaml.Node, message: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)
