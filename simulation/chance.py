"""Every seeded throw of a simulation: each from the seed and what it is about, so that none hangs on another or on the order of work."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from statistics import NormalDist

from simulation.scenario import AnswerTime, Scenario


def throw(seed: int, *about: object) -> float:
    """Return a number strictly between 0 and 1."""
    text = "\n".join(map(str, (seed, *about)))
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") + 0.5) / 2**48


def drops_out(scenario: Scenario, round_number: int, attempt: int, site: str) -> bool:
    """Return whether a site that was asked misses the round; another try at it is another throw."""
    return throw(scenario.seed, "drop", round_number, attempt, site) < scenario.drop


def answer_seconds(scenario: Scenario, round_number: int, attempt: int, site: str) -> float:
    """Return how long a site takes to answer; half of the variance is the site's own, the same in all rounds."""
    time: AnswerTime = scenario.answer_time
    own = NormalDist().inv_cdf(throw(scenario.seed, "speed", site))
    now = NormalDist().inv_cdf(throw(scenario.seed, "answer", round_number, attempt, site))
    return time.median_seconds * math.exp(time.spread * (own + now) / math.sqrt(2))


def hostile_sites(scenario: Scenario, sites: Collection[str], trusted: str | None) -> tuple[str, ...]:
    """Return the names of the hostile sites, sorted; ``trusted`` is never among them."""
    if scenario.hostility is None:
        return ()
    able = sorted(set(sites) - {trusted}, key=lambda site: throw(scenario.seed, "hostile", site))
    return tuple(sorted(able[: scenario.hostility.sites]))


def private_key_of(scenario: Scenario, site: str) -> bytes:
    """Return the 32 bytes of a simulated site's Ed25519 key."""
    return hashlib.sha256(f"{scenario.seed}\nkey\n{site}".encode()).digest()
