"""What is simulated: how many sites, who has which rows, who drops out, who is hostile; checked as a whole."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from simulation.attacks import Attack
from simulation.partition import ByField, Partition, parse_partition
from wegeft.contracts.errors import InvalidSetting, Problem
from wegeft.contracts.federation import Message
from wegeft.contracts.federation_rules import FLTrust
from wegeft.contracts.job import JobSpec, seconds_of

SITES_LIMIT = 10_000
_ANSWER = re.compile(r"(0|[1-9][0-9]{0,5}[smhd])(?::([0-9]+(?:\.[0-9]+)?))?")


class Hostility(Message):
    """Who is hostile."""

    sites: Annotated[int, Field(ge=1)]
    attack: Attack


class AnswerTime(Message):
    """How long sites take to answer: log-normal, one part of it a site's own and one of each round."""

    median_seconds: Annotated[float, Field(ge=0)] = 0.0
    spread: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Standard deviation of its logarithm."""


class Scenario(Message):
    """A simulation, whole and checked: equal ones of the same job end in the same bytes."""

    sites: Annotated[int, Field(ge=1, le=SITES_LIMIT)]
    partition: str
    """As given."""
    partition_by: str | None
    """Column whose values are the kinds of rows; None for a classifier's labels."""
    drop: Annotated[float, Field(ge=0, lt=1)]
    """Chance of each site that was asked to miss the round."""
    hostility: Hostility | None
    answer_time: AnswerTime
    seed: Annotated[int, Field(ge=0, lt=2**31)]

    @property
    def shares(self) -> Partition:
        """The partition, read."""
        found = parse_partition(self.partition)
        assert not isinstance(found, Problem)  # noqa: S101 - checked when the scenario was
        return found


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user asked for, as it was written."""

    sites: int | None
    partition: str
    partition_by: str | None = None
    drop: float = 0.0
    byzantine: str | None = None
    answer_time: str = "0"
    seed: int = 0
    rounds: int | None = None


def site_names(count: int) -> tuple[str, ...]:
    """Return the names of simulated sites, sorted; in records they stand for themselves."""
    width = max(3, len(str(count)))
    return tuple(f"site-{number:0{width}}" for number in range(1, count + 1))


def check_options(options: Options, spec: JobSpec) -> list[Problem]:
    """Return everything that is wrong with the options for this job, but for what depends on its rows."""
    problems = [*_number_problems(options), *_form_problems(options, spec)]
    if spec.federation is None:
        hint = "add federation: with rule and min_sites"
        problems.append(Problem(path="JOB.yaml: federation", message="the job has no federation: section", hint=hint))
    return problems


def make_scenario(options: Options, spec: JobSpec, sites: int) -> Scenario:
    """Return the scenario of options that were checked, for so many sites; raise :class:`InvalidSetting` where they are too few."""
    problems = list(_site_problems(options, spec, sites))
    if problems:
        raise InvalidSetting(f"{len(problems)} problem{'s' if len(problems) != 1 else ''} with the simulation", problems=problems)
    hostility, answer_time = _hostility(options.byzantine), _answer_time(options.answer_time)
    assert not isinstance(hostility, Problem)  # noqa: S101 - checked before
    assert not isinstance(answer_time, Problem)  # noqa: S101 - checked before
    return Scenario(
        sites=sites,
        partition=options.partition,
        partition_by=options.partition_by,
        drop=options.drop,
        hostility=hostility,
        answer_time=answer_time,
        seed=options.seed,
    )


def _number_problems(options: Options) -> Iterator[Problem]:
    if options.sites is not None and not 1 <= options.sites <= SITES_LIMIT:
        yield Problem(path="--sites", message=f"must be 1 to {SITES_LIMIT}", value=str(options.sites))
    if not 0 <= options.drop < 1:
        yield Problem(path="--drop", message="must be a chance from 0 to below 1", value=f"{options.drop:g}")
    if not 0 <= options.seed < 2**31:
        yield Problem(path="--seed", message="must be 0 to 2³¹ - 1", value=str(options.seed))
    if options.rounds is not None and not 1 <= options.rounds <= 10_000:
        yield Problem(path="--rounds", message="must be 1 to 10000", value=str(options.rounds))


def _form_problems(options: Options, spec: JobSpec) -> Iterator[Problem]:
    partition = parse_partition(options.partition)
    if isinstance(partition, Problem):
        yield partition
    elif isinstance(partition, ByField) != (options.sites is None):
        message = "every value of the column is a site" if options.sites is not None else "required, but not given"
        hint = "leave it out with by:FIELD" if options.sites is not None else "the number of sites; only by:FIELD needs none"
        yield Problem(path="--sites", message=message, value=None if options.sites is None else str(options.sites), hint=hint)
    for found in (_hostility(options.byzantine), _answer_time(options.answer_time)):
        if isinstance(found, Problem):
            yield found
    hostility = _hostility(options.byzantine)
    if isinstance(hostility, Hostility) and options.sites is not None:
        yield from _hostile_problems(hostility, spec, options.sites)


def _site_problems(options: Options, spec: JobSpec, sites: int) -> Iterator[Problem]:
    section = spec.federation
    if section is None:
        return
    if section.min_sites > sites:
        hint = f"federation.min_sites of the job is {section.min_sites}"
        yield Problem(path="--sites", message=f"must be {section.min_sites} or more", value=str(sites), hint=hint)
    names = set(site_names(sites))
    told = set(section.site_ranks) | ({section.defence.root} if isinstance(section.defence, FLTrust) else set())
    for name in sorted(told - names):
        first, last = min(names), max(names)
        yield Problem(path="JOB.yaml: federation", message="no simulated site has this name", value=name, hint=f"{first} to {last}")
    hostility = _hostility(options.byzantine)
    if options.sites is None and isinstance(hostility, Hostility):
        yield from _hostile_problems(hostility, spec, sites)


def _hostile_problems(hostility: Hostility, spec: JobSpec, sites: int) -> Iterator[Problem]:
    has_root = spec.federation is not None and isinstance(spec.federation.defence, FLTrust)
    most = sites - 1
    if hostility.sites > most:
        hint = "the trusted site of fltrust is never hostile" if has_root else None
        yield Problem(path="--byzantine", message=f"at most {most} of {sites} sites", value=str(hostility.sites), hint=hint)


def _hostility(text: str | None) -> Hostility | Problem | None:
    if text is None:
        return None
    count, _, name = text.partition(":")
    if not count.isdecimal() or not 1 <= int(count[:9]) <= SITES_LIMIT or not name:
        return Problem(path="--byzantine", message="not a number of sites and their attack", value=text, hint="5:gauge")
    if name not in set(Attack):
        close = difflib.get_close_matches(name, list(Attack), n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of: {', '.join(Attack)}"
        return Problem(path="--byzantine", message="not an attack", value=name, hint=hint)
    return Hostility(sites=int(count), attack=Attack(name))


def _answer_time(text: str) -> AnswerTime | Problem:
    match = _ANSWER.fullmatch(text)
    spread = float(match[2] or 0) if match else 0.0
    if match is None or spread > 10:
        return Problem(path="--answer-time", message="not a median and a spread", value=text, hint="0, 10m, or 10m:0.5")
    return AnswerTime(median_seconds=0.0 if match[1] == "0" else float(seconds_of(match[1])), spread=spread)
