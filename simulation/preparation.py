"""From a job, its rows and options to a simulation that is ready to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from hub.objects import MemoryStore
from orchestrator.federation_start import Start, read_start
from simulation.partition import ByField, kinds_of, parse_partition, share_out
from simulation.scenario import Options, Scenario, make_scenario, site_names
from wegeft.contracts.adapter import digest_of, is_digest
from wegeft.contracts.errors import InvalidData, InvalidSetting
from wegeft.contracts.federation_spec import FederationSpec, StartSpec
from wegeft.contracts.job import JobSpec
from workers.rows import AnyRow
from workers.simulated_site import Workplace
from workers.untrained import make_untrained


@dataclass(frozen=True, kw_only=True, eq=False)
class Simulation:
    """What is run."""

    scenario: Scenario
    rounds: int
    workplace: Workplace
    start: Start
    section: FederationSpec
    """How sites' work becomes one generator."""
    kinds: str
    """How rows were told apart."""

    @property
    def spec(self) -> JobSpec:
        """The job, as sites train it."""
        return self.workplace.spec

    @property
    def examples(self) -> dict[str, int]:
        """Rows of each site."""
        return {site: len(part) for site, part in self.workplace.parts.items()}

    def describe(self) -> dict[str, object]:
        """Return everything that its result follows from, but the number of rounds, as JSON can hold it."""
        parts = {site: list(part) for site, part in self.workplace.parts.items()}
        return {
            "version": 1,
            "scenario": self.scenario.model_dump(mode="json"),
            "job": self.spec.model_dump(mode="json", exclude={"federation"}),
            "federation": self.section.model_dump(mode="json", exclude={"rounds"}),
            "rows": digest_of(repr((list(self.workplace.rows), parts)).encode()),
            "held_out": digest_of(repr(list(self.workplace.held_out)).encode()),
        }


@dataclass(frozen=True, kw_only=True)
class Given:
    """Rows of a simulation."""

    rows: Sequence[AnyRow]
    values: Sequence[object]
    """What tells each row's kind."""
    held_out: Sequence[AnyRow] = ()


def prepare_simulation(spec: JobSpec, options: Options, given: Given, section: FederationSpec | None = None) -> Simulation:
    """Return the simulation of a federated job and options that were checked; the options' seed takes the place of the job's.

    ``section`` federates a job that is not federated itself: a classifier's generators, with its head as the base model has it.

    Raises :class:`InvalidSetting` or :class:`InvalidData` where the rows do not do, :class:`InvalidJob` where the start does not, and what
    :func:`workers.untrained.make_untrained` does.
    """
    federated = spec if section is None else spec.model_copy(update={"federation": section})
    partition = parse_partition(options.partition)
    kinds, how = kinds_of(given.values)
    if isinstance(partition, ByField):
        kinds, how = _own_kinds(given.values, partition.name)
    sites = len(set(kinds)) if isinstance(partition, ByField) else options.sites or 0
    scenario = make_scenario(options, federated, sites)
    if len(given.rows) < sites:
        raise InvalidData(f"{sites} sites need as many rows", path="--data", value=len(given.rows), hint="fewer --sites")
    parts = dict(zip(site_names(sites), share_out(kinds, scenario.shares, sites, scenario.seed), strict=True))
    start, ready, begun = _begin(federated, scenario.seed)
    return Simulation(
        scenario=scenario,
        rounds=options.rounds or begun.rounds,
        workplace=Workplace(
            spec=ready if section is None else ready.model_copy(update={"federation": None}),
            rows=given.rows,
            parts=parts,
            held_out=given.held_out,
        ),
        start=start,
        section=begun,
        kinds=how,
    )


def _begin(spec: JobSpec, seed: int) -> tuple[Start, JobSpec, FederationSpec]:
    """Return what the federation begins with, checked as a service does, the job with its base model pinned, and its section."""
    section = spec.federation
    assert section is not None  # noqa: S101 - options were checked
    seeded = spec.model_copy(update={"seed": seed})
    contents, commit = _start_files(seeded, section)
    store, digests = MemoryStore(), {name: digest_of(content) for name, content in contents.items()}
    for name, content in contents.items():
        store.put(digests[name], BytesIO(content), len(content))
    begun = section.model_copy(update={"start": StartSpec(**digests)})
    ready = seeded.model_copy(update={"federation": begun, "base_model_revision": commit})
    return read_start(ready, store), ready, begun


def _own_kinds(values: Sequence[object], column: str) -> tuple[list[str], str]:
    texts = [str(value) for value in values]
    return texts, f"{len(set(texts))} values of {column}, each a site"


def _start_files(spec: JobSpec, section: FederationSpec) -> tuple[dict[str, bytes], str | None]:
    """Return the files of the adapter that the federation begins with, and the base model's commit."""
    if section.start is None:
        made = make_untrained(spec)
        return {"config": made.config, "weights": made.weights}, made.commit or spec.base_model_revision
    files = {"config": section.start.config, "weights": section.start.weights}
    for name, text in files.items():
        if is_digest(text):
            hint = "give the file's path"
            raise InvalidSetting("a simulation reads files, and asks no service", path=f"federation.start.{name}", value=text, hint=hint)
    return {name: Path(text).read_bytes() for name, text in files.items()}, spec.base_model_revision
