"""The home folder of a service on one machine: who runs in it, at what address, and with which token."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Literal, Self

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from wegeft.contracts.errors import AlreadyRunning, InvalidSetting, StorageFull

LOCK_PATIENCE_SECONDS = 1.0
"""How long a service waits for the lock, which a command that looks at it may hold for a moment."""
CLOCK_SLACK_SECONDS = 5.0
"""By how much the start time of one process may differ between two readings, since the machine's clock is set in between."""
KEPT_LOG_BYTES = 16 << 20
KEY_BYTES = 32
"""Of an Ed25519 private key."""


class ServiceRecord(BaseModel):
    """What a running service says of itself; worthless once its lock is free."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int
    server: str
    """URL at which it answers."""
    pool: Literal["ray", "inline"]
    version: str
    since: datetime


class _Holder(BaseModel):
    """A process, told from a later one with the same number by the time it began."""

    pid: int
    began: float
    """Seconds since 1970."""

    @classmethod
    def of(cls, process: psutil.Process) -> Self:
        return cls(pid=process.pid, began=process.create_time())

    def find(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.began) < CLOCK_SLACK_SECONDS
            return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


@dataclass(frozen=True)
class Home:
    """One home folder; everything in it belongs to its owner alone."""

    folder: Path

    @property
    def record_file(self) -> Path:
        """Where the running service says who it is."""
        return self.folder / "service.json"

    @property
    def holder_file(self) -> Path:
        """Which process holds the home, from before it answers."""
        return self.folder / "holder.json"

    @property
    def token_file(self) -> Path:
        """The administrator's token of the service."""
        return self.folder / "token"

    @property
    def log_file(self) -> Path:
        """The log of a service that runs in the background."""
        return self.folder / "logs" / "service.log"

    @property
    def gateway_log_file(self) -> Path:
        """What the process that drives Ray prints."""
        return self.folder / "logs" / "gateway.log"

    def prepare(self) -> None:
        """Make the folder, for its owner alone; raise :class:`InvalidSetting` where that cannot be."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            (self.folder / "logs").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            message = f"the home folder cannot be used: {error.strerror}"
            raise InvalidSetting(message, path="WEGEFT_HOME", value=str(self.folder)) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the home for one service; raise :class:`AlreadyRunning` where another holds it.

        The kernel frees the lock when the process ends, however it ends.
        """
        with self._lock_file() as descriptor:
            end = monotonic() + LOCK_PATIENCE_SECONDS
            while not _try_lock(descriptor, fcntl.LOCK_EX):
                if monotonic() > end:
                    record = self.read_record()
                    where = f"at {record.server} (pid {record.pid})" if record else "and is still starting"
                    raise AlreadyRunning(f"a service runs in this home already, {where}", path=str(self.folder), hint="wgctl down stops it")
                sleep(0.05)
            self._write(self.holder_file, _Holder.of(psutil.Process()).model_dump_json() + "\n")
            yield

    def is_held(self) -> bool:
        """Whether a service runs here, or is starting."""
        if not (self.folder / "lock").exists():
            return False
        with self._lock_file() as descriptor:
            return not _try_lock(descriptor, fcntl.LOCK_SH)

    @contextmanager
    def _lock_file(self) -> Iterator[int]:
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def holder(self) -> psutil.Process | None:
        """Return the process that holds the home; None where none does, whatever a killed one left behind."""
        if not self.is_held():
            return None
        try:
            return _Holder.model_validate_json(self.holder_file.read_bytes()).find()
        except (OSError, ValidationError):
            return None

    def running(self) -> ServiceRecord | None:
        """Return the service that runs here and has said where it answers; None where there is none, or none yet."""
        record, holder = self.read_record(), self.holder()
        return record if record and holder and record.pid == holder.pid else None

    def read_record(self) -> ServiceRecord | None:
        """Return what the last service wrote, which may be gone since."""
        try:
            return ServiceRecord.model_validate_json(self.record_file.read_bytes())
        except (OSError, ValidationError):
            return None

    def write_record(self, record: ServiceRecord) -> None:
        """Say who runs here."""
        self._write(self.record_file, record.model_dump_json(indent=2) + "\n")

    def read_token(self) -> str | None:
        """Return the token that was kept here, if any."""
        with suppress(OSError, UnicodeDecodeError):
            return self.token_file.read_text(encoding="ascii").strip() or None
        return None

    def write_token(self, token: str) -> None:
        """Keep a token, readable by its owner alone."""
        self._write(self.token_file, token + "\n")

    @property
    def federation_key_file(self) -> Path:
        """The private key that signs receipts for sites."""
        return self.folder / "federation.key"

    def read_federation_key(self) -> bytes | None:
        """Return the private key that was kept here, if any; raise :class:`InvalidSetting` for a file that holds none."""
        try:
            key = bytes.fromhex(self.federation_key_file.read_text(encoding="ascii").strip())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InvalidSetting("the key file cannot be read", path=str(self.federation_key_file), hint="64 hex digits") from error
        if len(key) != KEY_BYTES:
            raise InvalidSetting("the key file holds no key", path=str(self.federation_key_file), hint="64 hex digits")
        return key

    def write_federation_key(self, key: bytes) -> None:
        """Keep the private key, readable by its owner alone."""
        self._write(self.federation_key_file, key.hex() + "\n")

    @property
    def signing_key_file(self) -> Path:
        """The private key that signs versions."""
        return self.folder / "signing.key"

    @property
    def trust_file(self) -> Path:
        """Which hubs' keys commands trust."""
        return self.folder / "trusted-keys.json"

    @property
    def audit_heads_file(self) -> Path:
        """Where services' audit logs ended when they were last checked."""
        return self.folder / "audit-heads.json"

    def write_audit_heads(self, text: str) -> None:
        """Keep where services' audit logs ended."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(self.audit_heads_file, text)

    def write_signing_key(self, text: str) -> None:
        """Keep the key, and what its predecessor says of it, readable by its owner alone."""
        self._write(self.signing_key_file, text)

    def _write(self, path: Path, text: str) -> None:
        try:
            descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=f".{path.name}.")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except OSError as error:
            raise StorageFull(f"the home folder cannot be written: {error.strerror}", path=str(self.folder)) from error

    def open_log(self) -> int:
        """Return a descriptor that appends to the service's log; a log that has grown long is put aside first."""
        with suppress(FileNotFoundError):
            if self.log_file.stat().st_size > KEPT_LOG_BYTES:
                self.log_file.replace(self.log_file.with_suffix(".log.1"))
        return os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
