"""The gate before publishing: whether a version's bytes are an adapter that PEFT and our method read, and nothing else.

Bytes are judged by what they are, never by their names; every problem is told at once, and nothing is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import assert_never

from hub.objects import ObjectStore, read_verified, stream_verified
from hub.publication import file_problems
from hub.published_config import PublishedConfig, check_config
from hub.published_fields import PublishedBaseline
from hub.strict_json import parse_object
from hub.tensor_layout import Expected, is_saved, layout_problems
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, JOB_FILE, METRICS_FILE, PUBLISHABLE_FILES, WEIGHTS_FILE, FileEntry
from wegeft.contracts.errors import InvalidInput, InvalidTensors, Problem
from wegeft.contracts.tensors import TensorHeader, TensorSpec, check_stream

MAX_WEIGHTS_BYTES = 4 << 30
MAX_TEXT_BYTES = {CONFIG_FILE: 1 << 20, CARD_FILE: 1 << 20, JOB_FILE: 12 << 20, METRICS_FILE: 1 << 20}
"""A job may name ten thousand labels."""
_MOST_PROBLEMS = 100
"""With the weights' tensors: a small file can hold thousands of wrong ones, and what would be right can be long for each."""

_GENERATOR = re.compile(r"base_model\.wegeft_generators\.(?P<group>[A-Za-z0-9_][A-Za-z0-9_.+@-]*)\.(?P<factor>phi|psi)\Z")


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """What the bytes of a version say about it."""

    method: str
    rank: int
    """0 where the method has none."""
    base_model: str | None
    """As the configuration names it."""
    parameters: int
    """How many numbers were trained."""


def check_version(store: ObjectStore, files: tuple[FileEntry, ...], max_weights_bytes: int = MAX_WEIGHTS_BYTES) -> AdapterFacts:
    """Return what a version's files say, if it may be published; reads every byte, in flat memory.

    Raises :class:`InvalidInput`, or :class:`InvalidTensors` where only the weights are wrong, with every problem; and
    :class:`DigestMismatch` where the store has let the bytes rot.
    """
    inspection = _Inspection(store, max_weights_bytes)
    inspection.problems += file_problems(files)
    entries = {entry.path: entry for entry in files if entry.path in PUBLISHABLE_FILES}
    stored = {path: entry for path, entry in entries.items() if inspection.is_stored(entry)}
    config = inspection.read_config(stored.get(CONFIG_FILE))
    header = inspection.read_weights(stored.get(WEIGHTS_FILE))
    for path in (JOB_FILE, METRICS_FILE):
        inspection.read_json(stored.get(path))
    inspection.read_card(stored.get(CARD_FILE))
    if header is not None:
        inspection.weight_problems += islice(_weight_problems(header, config), _MOST_PROBLEMS)
    inspection.conclude()
    assert config is not None and header is not None  # noqa: S101, PT018 - otherwise there were problems
    return _facts(config, sum(spec.count for spec in header.tensors))


def _facts(config: PublishedConfig | PublishedBaseline, parameters: int) -> AdapterFacts:
    method, rank = (config.method, config.rank) if isinstance(config, PublishedBaseline) else ("wegeft", config.r)
    return AdapterFacts(method=method, rank=rank, base_model=config.base_model_name_or_path, parameters=parameters)


def _weight_problems(header: TensorHeader, config: PublishedConfig | PublishedBaseline | None) -> Iterator[Problem]:
    """Yield what is wrong with the weights; without a readable configuration, only with generators, which say what they are."""
    match config:
        case None:
            if any(_GENERATOR.match(spec.name) for spec in header.tensors):
                yield from _generator_problems(header, None)
        case PublishedBaseline():
            saved = config.modules_to_save or ()
            expected = Expected(layout=config.layout, targets=config.target_modules, sizes=config.sizes, saved=saved)
            yield from layout_problems(header, expected)
        case PublishedConfig():
            yield from _generator_problems(header, config)
        case _:
            assert_never(config)


@dataclass
class _Inspection:
    """Reads files and gathers what is wrong with them."""

    store: ObjectStore
    max_weights_bytes: int
    problems: list[Problem] = field(default_factory=list)
    weight_problems: list[Problem] = field(default_factory=list)

    def is_stored(self, entry: FileEntry) -> bool:
        """Note and return whether the file's bytes are there, in the announced and an acceptable size."""
        limit = MAX_TEXT_BYTES.get(entry.path, self.max_weights_bytes)
        size = self.store.has(entry.digest)
        if size is None:
            self.problems.append(
                Problem(path=entry.path, message="its bytes are not in the store", value=entry.digest, hint="upload them first")
            )
        elif size != entry.size:
            self.problems.append(
                Problem(path=entry.path, message="its size differs", value=str(entry.size), hint=f"the store has {size} bytes")
            )
        elif size > limit:
            self.problems.append(Problem(path=entry.path, message="the file is too large", value=f"{size} bytes", hint=f"at most {limit}"))
        else:
            return True
        return False

    def read_config(self, entry: FileEntry | None) -> PublishedConfig | PublishedBaseline | None:
        found = self.read_json(entry)
        if found is None:
            return None
        match check_config(found):
            case PublishedConfig() | PublishedBaseline() as config:
                return config
            case problems:
                self.problems += [problem.model_copy(update={"path": f"{CONFIG_FILE}: {problem.path}"}) for problem in problems]
                return None

    def read_json(self, entry: FileEntry | None) -> dict[str, object] | None:
        if entry is None:
            return None
        try:
            return parse_object(read_verified(self.store, entry.digest, entry.size))
        except ValueError as error:
            self.problems.append(Problem(path=entry.path, message=f"not acceptable JSON: {error}"))
            return None

    def read_card(self, entry: FileEntry | None) -> None:
        if entry is None:
            return
        content = read_verified(self.store, entry.digest, entry.size)
        try:
            is_text = "\0" not in content.decode()
        except UnicodeDecodeError:
            is_text = False
        if not is_text:
            self.problems.append(Problem(path=entry.path, message="not UTF-8 text"))

    def read_weights(self, entry: FileEntry | None) -> TensorHeader | None:
        if entry is None:
            return None
        chunks = stream_verified(self.store, entry.digest, entry.size)
        try:
            return check_stream(chunks, entry.size)
        except InvalidTensors as error:
            for _ in chunks:  # rotten bytes are not the publisher's fault: to its end the stream tells them from wrong ones
                pass
            self.weight_problems += error.problems
            return None

    def conclude(self) -> None:
        """Raise what was found, if anything."""
        named = [problem.model_copy(update={"path": f"{WEIGHTS_FILE}: {problem.path}"}) for problem in self.weight_problems]
        if self.problems or named:
            kind = InvalidInput if self.problems else InvalidTensors
            raise kind("the files are not an adapter that can be published", problems=[*self.problems, *named])


def _generator_problems(header: TensorHeader, config: PublishedConfig | None) -> Iterator[Problem]:
    """Generators are stored as φ (width×rank) and ψ (rank×width) under ``base_model.wegeft_generators.<group>``."""
    factors: dict[str, dict[str, TensorSpec]] = {}
    for spec in header.tensors:
        match = _GENERATOR.match(spec.name)
        if match is None and config is not None and is_saved(spec.name, config.modules_to_save or ()):
            continue
        if match is None:
            hint = "base_model.wegeft_generators.<group>.phi or .psi"
            yield Problem(path=spec.name, message="a tensor that does not belong to a generator", hint=hint)
        else:
            factors.setdefault(match["group"], {})[match["factor"]] = spec
    for group, pair in factors.items():
        if missing := {"phi", "psi"} - pair.keys():
            yield Problem(path=group, message=f"the generator has no {missing.pop()}")
        else:
            yield from _pair_problems(group, pair["phi"], pair["psi"], config.ranks if config else None)


def _pair_problems(group: str, phi: TensorSpec, psi: TensorSpec, ranks: frozenset[int] | None) -> Iterator[Problem]:
    shapes = f"phi {list(phi.shape)}, psi {list(psi.shape)}"
    if len(phi.shape) != 2 or phi.shape != psi.shape[::-1]:
        yield Problem(path=group, message="phi and psi do not fit each other", value=shapes, hint="phi is width×rank, psi is rank×width")
    elif ranks is not None and psi.shape[0] not in ranks:
        allowed = ", ".join(str(rank) for rank in sorted(ranks))
        yield Problem(path=group, message="the rank differs from the configuration's", value=shapes, hint=f"rank {allowed}")
