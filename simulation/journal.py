"""A simulation's folder: every round that is done, and all that the next one needs, so that it goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from orchestrator.federation_files import read_state, write_state
from simulation.reports import RoundReport, SimulationReport
from simulation.server import BEGINNING, Played, Standing
from wegeft.client.blobs import local_errors
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import InvalidSetting, InvalidTensors, Problem
from wegeft.contracts.federation import RoundState
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.tensors import read_tensors
from workers.durable_files import write_durably
from workers.site_training import Moved

_WHAT, _SUMMARY, _CARRIED = "simulation.json", "summary.json", "carried.safetensors"


@dataclass(frozen=True)
class Journal:
    """Keeps a simulation in ``folder``; one process writes it at a time."""

    folder: Path

    def begin(self, what: Mapping[str, object]) -> None:
        """Say what is simulated here; raise :class:`InvalidSetting` with every difference where it is something else."""
        with local_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _WHAT
        if not path.exists():
            if any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise InvalidSetting("the folder holds something else", path="--output", value=str(self.folder), hint="give an empty one")
            write_durably(path, _json(what))
            return
        known = _loaded(path)
        now = json.loads(_json(what))
        problems = [
            Problem(path=name, message=f"was {_short(known.get(name))} when this was begun", value=_short(now.get(name)))
            for name in sorted(known.keys() | now.keys())
            if known.get(name) != now.get(name)
        ]
        if problems:
            raise InvalidSetting(f"{self.folder} holds another simulation; give another --output", problems=problems)

    def reports(self) -> list[RoundReport]:
        """Return what is known of each try at a round, in order."""
        try:
            return [RoundReport.model_validate_json(path.read_bytes()) for path in sorted(self.folder.glob("round-*.json"))]
        except ValidationError as error:
            raise InvalidSetting("a round's file is broken", path="--output", value=str(self.folder), hint="give another folder") from error

    def standing(self, first: Standing) -> Standing:
        """Return where the simulation was stopped, ``first`` where nothing is done; raise :class:`InvalidSetting` where a file is lost."""
        reports = self.reports()
        if not reports:
            return first
        committed = [report for report in reports if report.record.state is RoundState.COMMITTED]
        last = reports[-1].record
        number = committed[-1].record.round if committed else 0
        return Standing(
            state=first.state if not committed else read_state(self._verified(number, committed[-1].record.result or "")),
            carried=self._carried(number),
            committed=number,
            failed_in_a_row=last.attempt if last.state is RoundState.FAILED else 0,
            now=last.closed_at or BEGINNING,
        )

    def _verified(self, number: int, digest: str) -> bytes:
        path = self._state_file(number)
        content = path.read_bytes() if path.exists() else b""
        if digest_of(content) != digest:
            hint = "give another folder, and the simulation begins anew"
            raise InvalidSetting("the state after the last round is lost or changed", path="--output", value=str(path), hint=hint)
        return content

    def _carried(self, number: int) -> Mapping[str, Moved]:
        path = self.folder / f"{number:05}-{_CARRIED}"
        if not path.exists():
            return {}
        try:
            tensors = read_tensors(path.read_bytes())
        except InvalidTensors as error:
            raise InvalidSetting("what sites carry over is broken", path="--output", value=str(path), hint="give another folder") from error
        carried: dict[str, dict[str, NDArray[np.float64]]] = {}
        for name, array in tensors.items():
            site, _, tensor = name.partition("/")
            carried.setdefault(site, {})[tensor] = array
        return carried

    def keep(self, played: Played) -> None:
        """Keep a try at a round; once this returns it is never played again."""
        record, standing = played.report.record, played.standing
        if record.state is RoundState.COMMITTED:
            tensors = {f"{site}/{name}": array for site, moved in standing.carried.items() for name, array in moved.items()}
            if tensors:
                write_durably(self.folder / f"{record.round:05}-{_CARRIED}", write_tensors(tensors, "F64"))
            write_durably(self._state_file(record.round), write_state(standing.state))
        write_durably(self.folder / f"round-{record.round:05}-{record.attempt:05}.json", played.report.to_bytes())
        if record.state is RoundState.COMMITTED:
            for path in [*self.folder.glob("*-state.safetensors"), *self.folder.glob(f"*-{_CARRIED}")]:
                if not path.name.startswith(f"{record.round:05}-"):
                    path.unlink(missing_ok=True)

    def _state_file(self, number: int) -> Path:
        return self.folder / f"{number:05}-state.safetensors"

    def finish(self, report: SimulationReport, files: Mapping[str, bytes]) -> None:
        """Keep what the simulation came to, and the adapter's files."""
        with local_errors(self.folder):
            (self.folder / "adapter").mkdir(exist_ok=True)
        for name, content in files.items():
            write_durably(self.folder / "adapter" / name, content)
        write_durably(self.folder / _SUMMARY, report.to_bytes())


def _json(what: Mapping[str, object]) -> bytes:
    return (json.dumps(what, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _loaded(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidSetting("not a simulation's folder", path="--output", value=str(path.parent), hint="give an empty one")
    return found


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
