"""Which tensors a method stores for each module, in symbols, and whether a file of weights fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from wegeft.contracts.errors import Problem
from wegeft.contracts.tensors import TensorHeader, TensorSpec

Shape = tuple[str | int, ...]
"""Sizes, or symbols for them. A symbol means one size within a module, and within the tensors that modules share."""

_PREFIX = "base_model."
_MODULES = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a method stores."""

    tensors: Mapping[str, tuple[Shape, ...]]
    """The shapes that a module's tensor may have, by the end of its name."""
    sets: tuple[frozenset[str], ...]
    """Which tensors a module must have: one of these sets."""
    optional: frozenset[str] = frozenset()
    """Tensors that it may have besides."""
    shared: Mapping[str, Shape] = field(default_factory=dict)
    """Tensors that all modules share, by name."""


def layout(tensors: Mapping[str, Shape], shared: Mapping[str, Shape] | None = None) -> Layout:
    """Return the layout of a method whose modules all have the same tensors."""
    return Layout(tensors={end: (shape,) for end, shape in tensors.items()}, sets=(frozenset(tensors),), shared=shared or {})


def layout_of_sets(
    tensors: Mapping[str, tuple[Shape, ...]],
    sets: tuple[frozenset[str], ...],
    optional: frozenset[str] = frozenset(),
    shared: Mapping[str, Shape] | None = None,
) -> Layout:
    """Return the layout of a method whose modules may have different tensors, or tensors of different shapes."""
    return Layout(tensors=tensors, sets=sets, optional=optional, shared=shared or {})


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a configuration says of the weights beside it."""

    layout: Layout
    targets: Sequence[str]
    """Ends of the names of the adapted modules."""
    sizes: Mapping[str, frozenset[int]]
    """Which sizes a symbol may have."""
    saved: Sequence[str] = ()
    """Ends of the names of the modules that are stored in full."""


def layout_problems(header: TensorHeader, expected: Expected) -> Iterator[Problem]:
    """Yield everything in which the weights differ from what is expected."""
    modules: dict[str, dict[str, TensorSpec]] = {}
    targets = frozenset(expected.targets)
    shared: dict[str, TensorSpec] = {}
    for spec in header.tensors:
        place = _place(spec.name, expected.layout)
        if spec.name.removeprefix(_PREFIX) in expected.layout.shared and spec.name.startswith(_PREFIX):
            shared[spec.name.removeprefix(_PREFIX)] = spec
        elif place is not None and not targets.isdisjoint(_ends_of(place[0])):
            modules.setdefault(place[0], {})[place[1]] = spec
        elif not is_saved(spec.name, expected.saved):
            yield Problem(path=spec.name, message="a tensor that belongs to no target module", hint=_hint(expected.layout))
    yield from _absent(modules, shared, expected)
    for module, tensors in modules.items():
        yield from _module_problems(module, tensors, expected)
    sizes: dict[str, int] = {}
    for name, spec in shared.items():
        yield from _shape_problems(name, spec, (expected.layout.shared[name],), expected, sizes)


def is_saved(name: str, saved: Iterable[str]) -> bool:
    """Whether a tensor belongs to a module that is stored in full; PEFT goes by the ends of names, dots or not."""
    if not name.startswith(_MODULES):
        return False
    rest = name.removeprefix(_MODULES)
    # A path to a module ends where a dot follows, so that one look per end is enough for all paths.
    return any(f"{end}." in rest for end in saved)


def _place(name: str, layout: Layout) -> tuple[str, str] | None:
    if not name.startswith(_MODULES):
        return None
    rest = name.removeprefix(_MODULES)
    ends = [end for end in layout.tensors if rest.endswith(f".{end}")]
    return (rest.removesuffix(f".{ends[0]}"), ends[0]) if ends else None


def _ends_of(module: str) -> Iterator[str]:
    """Yield every name that stands for a module: its path, and what follows each dot in it."""
    yield module
    yield from (module[index + 1 :] for index, character in enumerate(module) if character == ".")


def _hint(layout: Layout) -> str:
    return f"{_MODULES}<module>.{' or .'.join(layout.tensors)}"


def _absent(modules: Iterable[str], shared: Iterable[str], expected: Expected) -> Iterator[Problem]:
    wanted = frozenset(expected.targets)
    reached = {end for module in modules for end in _ends_of(module) if end in wanted}
    for target in expected.targets:
        if target not in reached:
            yield Problem(path=target, message="no tensor belongs to this target module")
    for name in sorted(expected.layout.shared.keys() - set(shared)):
        yield Problem(path=f"{_PREFIX}{name}", message="the tensor is missing", hint="save with save_projection: true")


def _module_problems(module: str, tensors: Mapping[str, TensorSpec], expected: Expected) -> Iterator[Problem]:
    found = tensors.keys() - expected.layout.optional
    if found not in expected.layout.sets:
        wanted = " or ".join(", ".join(sorted(names)) for names in expected.layout.sets)
        yield Problem(path=module, message="some of its tensors are missing, or do not go together", value=", ".join(tensors), hint=wanted)
    sizes: dict[str, int] = {}
    for end, spec in tensors.items():
        yield from _shape_problems(module, spec, expected.layout.tensors[end], expected, sizes)


def _shape_problems(at: str, spec: TensorSpec, shapes: tuple[Shape, ...], expected: Expected, sizes: dict[str, int]) -> Iterator[Problem]:
    """Yield a problem where no shape fits; otherwise note in ``sizes`` what the symbols are."""
    for shape in shapes:
        meant = _match(spec.shape, shape, expected.sizes, sizes)
        if meant is not None:
            sizes |= meant
            return
    wanted = " or ".join("×".join(map(str, shape)) for shape in shapes)
    allowed = "; ".join(f"{symbol} is {' or '.join(map(str, sorted(values)[:8]))}" for symbol, values in expected.sizes.items())
    yield Problem(
        path=at, message="a tensor's shape does not fit the configuration or its neighbours", value=f"{spec.name} {list(spec.shape)}",
        hint=f"{wanted}{f', where {allowed}' if allowed else ''}",
    )  # fmt: skip


def _match(found: tuple[int, ...], shape: Shape, allowed: Mapping[str, frozenset[int]], known: Mapping[str, int]) -> dict[str, int] | None:
    """Return what each symbol means if the sizes fit."""
    if len(found) != len(shape):
        return None
    meant: dict[str, int] = {}
    for size, symbol in zip(found, shape, strict=True):
        if isinstance(symbol, int):
            if size != symbol:
                return None
        elif known.get(symbol, size) != size or meant.get(symbol, size) != size or size not in allowed.get(symbol, {size}):
            return None
        else:
            meant[symbol] = size
    return meant
