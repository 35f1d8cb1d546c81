"""What became of each round that a site was asked in: durable step by step, so that nothing that was done is done again.

An entry is a folder. Its files come in this order, each whole or not there: ``offer.json``; ``checkpoint-<step>/`` while it trains;
``carried.safetensors`` where the wire cut something off, ``control.safetensors`` with SCAFFOLD, ``tensors.safetensors``, then
``update.json`` once it has trained; ``stored`` once the tensors are at the server; and at last ``receipt.json``, or ``ended.json`` where
the round ended otherwise.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from pydantic import ValidationError

from wegeft.client.blobs import local_errors
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import InvalidSetting, Problem
from wegeft.contracts.federation import Message, Offer, SignedReceipt, Update
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.tensors import read_tensors
from workers.durable_files import sync_folder, write_durably

KEPT_ROUNDS = 3
"""Rounds whose tensors are kept; receipts are kept for ever."""

_CHECKPOINT = "checkpoint-"

Kept = TypeVar("Kept", bound=Message)


class Ending(StrEnum):
    """How a round ended for the site without a receipt."""

    DECLINED = "declined"
    """The policy forbids it, or training failed; the server knows."""
    LATE = "late"
    """The round was over before the update came."""
    REFUSED = "refused"
    """The server's gate did not let the update through."""


class Ended(Message):
    """Why there is no receipt."""

    ending: Ending
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One offer, and how far the site has come with it."""

    folder: Path
    offer: Offer

    @property
    def receipt(self) -> SignedReceipt | None:
        """The server's word that the update is safe."""
        return _read(self.folder / "receipt.json", SignedReceipt)

    @property
    def ended(self) -> Ended | None:
        """Why there is no receipt and will be none."""
        return _read(self.folder / "ended.json", Ended)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return (self.folder / "receipt.json").exists() or (self.folder / "ended.json").exists()

    @property
    def update(self) -> Update | None:
        """What is to be sent, or was; None while the site has not trained, and where the tensors to be sent have rotted since."""
        update = _read(self.folder / "update.json", Update)
        if update is None or self.is_over:
            return update
        return update if digest_of(self.read_tensors()) == update.tensors else None

    @property
    def is_stored(self) -> bool:
        """Whether the tensors are at the server."""
        return (self.folder / "stored").exists()

    def read_tensors(self) -> bytes:
        """Return the update's file; nothing where it is gone."""
        with local_errors(self.folder):
            path = self.folder / "tensors.safetensors"
            return path.read_bytes() if path.exists() else b""

    def keep_checkpoint(self, step: int, files: Mapping[str, bytes]) -> None:
        """Keep a checkpoint in place of the ones before."""
        made = self.folder / f".{_CHECKPOINT}{step}"
        with local_errors(self.folder):
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            for name, content in files.items():
                write_durably(made / name, content)
            target = self.folder / f"{_CHECKPOINT}{step}"
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
            sync_folder(self.folder)
            for older in self._checkpoints()[:-1]:
                shutil.rmtree(older, ignore_errors=True)

    def read_checkpoint(self) -> dict[str, bytes] | None:
        """Return the files of the last checkpoint; None where there is none."""
        found = self._checkpoints()
        with local_errors(self.folder):
            return {path.name: path.read_bytes() for path in sorted(found[-1].iterdir())} if found else None

    def drop_checkpoints(self) -> None:
        """Forget the checkpoints."""
        for folder in self._checkpoints():
            shutil.rmtree(folder, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_CHECKPOINT}*"), key=lambda path: int(path.name.removeprefix(_CHECKPOINT)))

    @property
    def carried_file(self) -> Path:
        """What the wire cut off this update and those before."""
        return self.folder / "carried.safetensors"

    @property
    def control_file(self) -> Path:
        """The site's control variate once this update counts."""
        return self.folder / "control.safetensors"

    def keep_update(
        self, update: Update, tensors: bytes, carried: Mapping[str, NDArray[Any]] = {}, control: Mapping[str, NDArray[Any]] = {}
    ) -> None:
        """Keep what training gave: the update, what was cut off it, and the control variate after it.

        From now on this offer is not trained again.
        """
        if carried:
            write_durably(self.carried_file, write_tensors(carried))
        if control:
            write_durably(self.control_file, write_tensors(control, "F64"))
        write_durably(self.folder / "tensors.safetensors", tensors)
        write_durably(self.folder / "update.json", update.to_bytes())
        self.drop_checkpoints()

    def mark_stored(self) -> None:
        """Note that the tensors are at the server."""
        write_durably(self.folder / "stored", b"")

    def keep_receipt(self, receipt: SignedReceipt) -> None:
        """Keep the server's receipt: the round is done."""
        write_durably(self.folder / "receipt.json", receipt.to_bytes())

    def end(self, ending: Ending, problems: tuple[Problem, ...] = ()) -> None:
        """Note that the round is over without a receipt."""
        write_durably(self.folder / "ended.json", Ended(ending=ending, problems=problems).to_bytes())
        self.drop_checkpoints()


@dataclass(frozen=True)
class Journal:
    """All entries of one site."""

    folder: Path

    def open(self, offer: Offer) -> Entry:
        """Return the entry of an offer, made now where it is new."""
        folder = self.folder / f"{offer.round:06d}-{offer.attempt:03d}-{offer.digest.removeprefix('sha256:')[:12]}"
        if not (folder / "offer.json").exists():
            with local_errors(self.folder):
                folder.mkdir(exist_ok=True)
            write_durably(folder / "offer.json", offer.to_bytes())
        return Entry(folder, offer)

    def entries(self) -> list[Entry]:
        """Return every entry, oldest round first."""
        found = [(folder, _read(folder / "offer.json", Offer)) for folder in sorted(self.folder.glob("[0-9]*-*"))]
        return [Entry(folder, offer) for folder, offer in found if offer is not None]

    def start_file(self, digest: str) -> Path:
        """Return where the start of this digest is kept."""
        return self.folder / f"start-{digest.removeprefix('sha256:')}.safetensors"

    def read_carried(self, offer: Offer) -> dict[str, NDArray[Any]]:
        """Return what is to be added to the update that answers ``offer``, by tensor; raise :class:`InvalidTensors` where it has rotted.

        It is what was cut off the site's last update that is in what it starts from. An update that came late, was refused, or is of a try
        that was made again or a round that was undone is not in that, so nothing is owed for it.
        """
        carrier = self._find(offer.feedback.counted if offer.feedback else None)
        if carrier is None or not carrier.carried_file.exists():
            return {}
        with local_errors(self.folder):
            return read_tensors(carrier.carried_file.read_bytes())

    def read_control(self, offer: Offer) -> dict[str, NDArray[Any]] | None:
        """Return the site's control variate as it was after the update that ``offer`` says counted last; None where it is gone.

        Raises :class:`InvalidTensors` where it has rotted.
        """
        entry = self._find(offer.control.counted if offer.control else None)
        if entry is None or not entry.control_file.exists():
            return None
        with local_errors(self.folder):
            return read_tensors(entry.control_file.read_bytes())

    def _find(self, tensors: str | None) -> Entry | None:
        """Return the newest entry whose update's file has this digest."""
        for entry in reversed(self.entries()) if tensors is not None else ():
            update = _read(entry.folder / "update.json", Update)
            if update is not None and update.tensors == tensors:
                return entry
        return None

    def prune(self) -> None:
        """Forget the tensors and starts of all but the last rounds, and what was cut off long ago."""
        entries = self.entries()
        wanted = {self.start_file(entry.offer.start).name for entry in entries[-KEPT_ROUNDS:]}
        for path in self.folder.glob("start-*"):
            if path.name.removesuffix(".part") not in wanted:
                path.unlink(missing_ok=True)
        for entry in entries[:-KEPT_ROUNDS]:
            if entry.is_over:
                (entry.folder / "tensors.safetensors").unlink(missing_ok=True)
        if entries:
            feedback = entries[-1].offer.feedback
            carrier = self._find(feedback.counted if feedback else None)
            for entry in entries[:-KEPT_ROUNDS]:
                if entry != carrier:
                    entry.carried_file.unlink(missing_ok=True)
            self._prune_controls(entries)

    def _prune_controls(self, entries: Sequence[Entry]) -> None:
        """Forget control variates from before the one that the newest offer says to go on from."""
        terms = entries[-1].offer.control
        if terms is None or terms.counted is None:
            return
        for entry in reversed(entries[:-KEPT_ROUNDS]):
            update = _read(entry.folder / "update.json", Update)
            if update is not None and update.tensors == terms.counted:
                break
        else:
            return
        for older in entries[: entries.index(entry)]:
            older.control_file.unlink(missing_ok=True)


def _read(path: Path, kind: type[Kept]) -> Kept | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise InvalidSetting("the journal cannot be read", path=str(path), hint="move its folder away to do the round again") from error
