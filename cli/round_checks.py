"""Checking a federation's rounds from their evidence, for ``wgctl federation verify``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from orchestrator.round_proof import Check, check_round
from wegeft.contracts.adapter import WEIGHTS_FILE
from wegeft.contracts.errors import Problem, WegeftError

if TYPE_CHECKING:
    from wegeft.client import Client
    from wegeft.client.federation import FederationClient


class RoundChecks(BaseModel):
    """What one round's evidence proves."""

    model_config = ConfigDict(frozen=True)

    round: int
    checks: tuple[Check, ...]

    @property
    def failed(self) -> int:
        """How many checks have found something wrong."""
        return sum(check.is_ok is False for check in self.checks)

    @property
    def unproved(self) -> tuple[str, ...]:
        """What has been found neither right nor wrong, by the names of the checks."""
        return tuple(check.name for check in self.checks if check.is_ok is None)

    def problems(self) -> list[Problem]:
        """Return what is wrong, with the name of the check that found it."""
        return [Problem(path=f"round {self.round}, {check.name}", message=check.found) for check in self.checks if check.is_ok is False]


@dataclass
class Verifier:
    """Downloads what rounds are made of into a folder, and checks them."""

    federations: FederationClient
    hub: Client
    job_id: str
    folder: Path

    def verify(self, numbers: list[int]) -> Iterator[RoundChecks]:
        """Yield what each of these committed rounds proves, lowest first, each compared with the one before where that is among them."""
        results: dict[int, str | None] = {}
        for number in sorted(numbers):
            evidence = self.federations.evidence(self.job_id, number)
            results[number] = evidence.record.result
            checks = check_round(evidence, self._reader(number), results.get(evidence.parent), self._weights_of(evidence.record.published))
            yield RoundChecks(round=number, checks=tuple(checks))

    def _reader(self, number: int) -> Callable[[str], bytes]:
        def read(digest: str) -> bytes:
            path = self.folder / digest.replace(":", "-")
            if not path.exists():
                self.federations.fetch_round_blob(self.job_id, number, digest, path)
            return path.read_bytes()

        return read

    def _weights_of(self, published: str | None) -> str | None:
        if published is None:
            return None
        try:
            files = self.hub.resolve(published).manifest.files
        except WegeftError:
            return None
        return next((entry.digest for entry in files if entry.path == WEIGHTS_FILE), None)
