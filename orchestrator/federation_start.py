"""What a federation begins with: the adapter that its job names, checked when the job is submitted and read when its first round opens."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hub.objects import ObjectStore, read_verified
from hub.published_config import PublishedConfig, check_config
from hub.published_fields import PublishedBaseline
from hub.strict_json import parse_object
from orchestrator.aggregate import FederationState
from orchestrator.federation_files import GENERATOR_PREFIX, state_from_adapter
from wegeft.contracts.adapter import check_digest
from wegeft.contracts.errors import InvalidJob, InvalidReference, InvalidTensors, Problem, shorten
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.job import JobSpec
from wegeft.contracts.tensors import read_tensors

MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 1 << 30
_FIXED = {"freeze_phi": ("phi",), "freeze_psi": ("psi",), "core": ("phi", "psi")}
"""Factors that a rule never changes: where one is zero, nothing could be learnt."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Where a federation begins."""

    config: Mapping[str, Any]
    """``adapter_config.json``, but for what each version says of its own rank."""
    state: FederationState


def read_start(spec: JobSpec, store: ObjectStore, had: Collection[str] | None = None) -> Start:
    """Return what a federated job begins with; raise :class:`InvalidJob` with every reason why it cannot.

    ``had`` are the digests that may be read; None reads any.
    """
    reader = _Reader(spec, store, had)
    config = reader.read_config()
    weights = reader.read_weights()
    if weights is not None:
        reader.problems += _weight_problems(spec, weights)
    if reader.problems or config is None or weights is None:
        count = len(reader.problems)
        raise InvalidJob(f"{count} problem{'s' if count != 1 else ''} with the adapter to start from", problems=reader.problems)
    groups = {name.removeprefix(GENERATOR_PREFIX).rpartition(".")[0] for name in weights}
    scales = dict.fromkeys(groups, spec.effective_alpha / spec.effective_rank)
    state = state_from_adapter(weights, scales)
    if _section(spec).rule.name == "core":
        # Its factors are fixed directions, and what is learnt between them begins at nothing.
        state = FederationState(
            edits={group: replace(edit, core=np.zeros((spec.effective_rank,) * 2)) for group, edit in state.edits.items()}
        )
    return Start(config=config, state=state)


def start_problems(spec: JobSpec, store: ObjectStore, had: Collection[str]) -> tuple[Problem, ...]:
    """Return why a federated job cannot begin; empty where it can. Bytes that are not among those the caller ``had`` are not told of."""
    try:
        read_start(spec, store, had)
    except InvalidJob as error:
        return error.problems
    return ()


def _section(spec: JobSpec) -> FederationSpec:
    assert spec.federation is not None  # noqa: S101 - only federated jobs come here
    return spec.federation


class _Reader:
    """Reads the two files and gathers what is wrong with them."""

    def __init__(self, spec: JobSpec, store: ObjectStore, had: Collection[str] | None) -> None:
        self._spec, self._store, self._had = spec, store, had
        self._start = _section(spec).start
        self.problems: list[Problem] = []
        if self._start is None:
            hint = "`wgctl submit` makes an untrained one; give the digests of adapter_config.json and adapter_model.safetensors"
            self.problems.append(Problem(path="federation.start", message="required, but not given", hint=hint))

    def read_config(self) -> Mapping[str, Any] | None:
        """Return the configuration, if it is one that fits the job."""
        content = self._read("config", self._start.config, MAX_CONFIG_BYTES) if self._start else None
        if content is None:
            return None
        path = "federation.start.config"
        try:
            found = parse_object(content)
        except ValueError as error:
            self.problems.append(Problem(path=path, message=f"not acceptable JSON: {error}"))
            return None
        match check_config(found):
            case PublishedConfig() as config:
                self.problems += _config_problems(self._spec, config)
                return found
            case PublishedBaseline() as other:
                message = "the adapter of a federation is a WeGeFT one"
                self.problems.append(Problem(path=f"{path}: peft_type", message=message, value=other.method))
                return None
            case problems:
                self.problems += [problem.model_copy(update={"path": f"{path}: {problem.path}"}) for problem in problems]
                return None

    def read_weights(self) -> Mapping[str, Any] | None:
        """Return the tensors, if the file is whole and holds finite numbers."""
        content = self._read("weights", self._start.weights, MAX_WEIGHTS_BYTES) if self._start else None
        if content is None:
            return None
        try:
            return read_tensors(content)
        except InvalidTensors as error:
            path = "federation.start.weights"
            self.problems += [problem.model_copy(update={"path": f"{path}: {problem.path}"}) for problem in error.problems]
            return None

    def _read(self, field: str, digest: str, limit: int) -> bytes | None:
        path = f"federation.start.{field}"
        try:
            check_digest(digest)
        except InvalidReference:
            hint = "upload it and give its digest; `wgctl submit` does"
            self.problems.append(
                Problem(path=path, message="the server does not read the author's files", value=shorten(digest), hint=hint)
            )
            return None
        size = self._store.has(digest) if self._had is None or digest in self._had else None
        if size is None or size > limit:
            message = "no such file was uploaded" if size is None else f"longer than {limit} bytes"
            self.problems.append(Problem(path=path, message=message, value=digest, hint=f"PUT it to /api/v1/blobs/{digest}"))
            return None
        return read_verified(self._store, digest, size)


def _config_problems(spec: JobSpec, config: PublishedConfig) -> Iterator[Problem]:
    expected = {"r": (config.r, spec.effective_rank), "wegeft_alpha": (config.wegeft_alpha, spec.effective_alpha)}
    for name, (found, wanted) in expected.items():
        if not math.isclose(found, wanted):
            field = "rank" if name == "r" else "alpha"
            yield Problem(path=f"federation.start.config: {name}", message=f"must be the job's {field}, {wanted:g}", value=f"{found:g}")
    for name in ("rank_pattern", "alpha_pattern"):
        if getattr(config, name):
            yield Problem(path=f"federation.start.config: {name}", message="every generator of a federation starts with the job's rank")


def _weight_problems(spec: JobSpec, weights: Mapping[str, Any]) -> Iterator[Problem]:
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, array in weights.items():
        group, _, factor = name.removeprefix(GENERATOR_PREFIX).rpartition(".")
        if not name.startswith(GENERATOR_PREFIX) or not group or factor not in ("phi", "psi"):
            yield Problem(path=f"federation.start.weights: {shorten(name)}", message="a tensor that does not belong to a generator")
            continue
        factors.setdefault(group, {})[factor] = np.shape(array)
    for group, shapes in sorted(factors.items()):
        phi, psi = shapes.get("phi", ()), shapes.get("psi", ())
        if len(phi) != 2 or phi != psi[::-1] or phi[1] != spec.effective_rank:
            message = f"phi must be width×{spec.effective_rank} and psi {spec.effective_rank}×width"
            yield Problem(path=f"federation.start.weights: {group}", message=message, value=f"phi {list(phi)}, psi {list(psi)}")
    rule = _section(spec).rule.name
    for factor in _FIXED.get(rule, ()):
        if all(not array.any() for name, array in weights.items() if name.endswith(f".{factor}")):
            message = f"every {factor} is zero, and under {rule} it stays so and nothing is learnt"
            yield Problem(path="federation.start.weights", message=message, hint="start from other weights, or choose another rule")
