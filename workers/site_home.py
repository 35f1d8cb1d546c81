"""A site's own folder: its key, what it has enrolled in, what it lets itself be asked, and the journal of its rounds."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError

from wegeft.client.site import SiteCredentials
from wegeft.contracts.enrolment import Enrolment
from wegeft.contracts.errors import AlreadyRunning, Conflict, InvalidSetting, NotFound, Problem, WegeftError
from wegeft.contracts.federation import Message
from wegeft.contracts.job import JobSpec
from wegeft.contracts.site_policy import SitePolicy
from wegeft.contracts.yaml_source import parse_yaml
from workers.durable_files import sync_folder, write_durably

_KEY_BYTES = 32
_OTHERS = 0o077


class SiteRecord(Message):
    """What a site keeps of its enrolment."""

    version: Literal[1] = 1
    """Version of this file."""
    server: str
    """URL."""
    enrolment: Enrolment
    """As the server answered."""


@dataclass(frozen=True)
class SiteHome:
    """One site's folder; everything in it belongs to its owner alone."""

    folder: Path

    @property
    def key_file(self) -> Path:
        """The private key, as 64 hex digits."""
        return self.folder / "site.key"

    @property
    def new_key_file(self) -> Path:
        """A private key that the server is about to bind, or has bound just now."""
        return self.folder / "site.key.new"

    @property
    def record_file(self) -> Path:
        """What the site has enrolled in."""
        return self.folder / "enrolment.json"

    @property
    def policy_file(self) -> Path:
        """What the site lets itself be asked; for its owner to edit."""
        return self.folder / "policy.yaml"

    @property
    def journal_folder(self) -> Path:
        """What became of each round."""
        return self.folder / "rounds"

    def prepare(self) -> None:
        """Make the folder, for its owner alone; raise :class:`InvalidSetting` where that cannot be."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            self.journal_folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise InvalidSetting(f"the site's folder cannot be used: {error.strerror}", path="--home", value=str(self.folder)) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process; raise :class:`AlreadyRunning` where another one does. The kernel frees it at the end."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = "another process works for this site already"
                raise AlreadyRunning(
                    message, path="--home", value=str(self.folder), hint="stop it, or give each site its own folder"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def ensure_key(self) -> bytes:
        """Return the private key, made now where there is none; it is stored before it is used anywhere."""
        return _ensure_key(self.key_file)

    def ensure_new_key(self) -> bytes:
        """Return the private key that is to replace the site's, made now where there is none; stored before it is used anywhere."""
        return _ensure_key(self.new_key_file)

    def take_new_key(self, enrolment: Enrolment) -> None:
        """Work with the new key, which the server has bound, from now on; harmless to repeat, whatever ends this half way.

        Raises :class:`Conflict` where ``enrolment`` is not this site's, or in the name of another server.
        """
        record = self.read_record()
        if enrolment.server_key != record.enrolment.server_key:
            hint = "ask who runs it; if it was set up anew, enrol again"
            raise Conflict("the server's key is not the one of the enrolment", path="server_key", value=enrolment.server_key, hint=hint)
        self.check_own(enrolment)
        write_durably(self.key_file, _read_key(self.new_key_file).hex().encode() + b"\n")
        self.keep_record(record.model_copy(update={"enrolment": enrolment}))
        self.new_key_file.unlink()
        sync_folder(self.folder)

    def read_key(self) -> bytes:
        """Return the private key; raise :class:`NotFound`, or :class:`InvalidSetting` where others may read it or it is none."""
        return _read_key(self.key_file)

    def keep_record(self, record: SiteRecord) -> None:
        """Keep what the site has enrolled in; raise :class:`Conflict` where that is another federation or site."""
        self.check_own(record.enrolment)
        write_durably(self.record_file, record.to_bytes())

    def check_own(self, enrolment: Enrolment) -> None:
        """Raise :class:`Conflict` where the site has enrolled in another federation, or as another site."""
        with suppress(NotFound):
            held = self.read_record().enrolment
            if (held.job_id, held.site.pseudonym) != (enrolment.job_id, enrolment.site.pseudonym):
                message = f"this folder belongs to {held.site.name} of {held.job_id}"
                raise Conflict(message, path="--home", value=str(self.folder), hint="give each site its own folder")

    def read_record(self) -> SiteRecord:
        """Return what the site has enrolled in; raise :class:`NotFound`, or :class:`InvalidSetting` where the file is not ours."""
        try:
            return SiteRecord.model_validate_json(self.record_file.read_bytes())
        except FileNotFoundError as error:
            hint = "first: wgctl site enrol --server URL --token TOKEN"
            raise NotFound("the site has not enrolled in a federation", path=str(self.folder), hint=hint) from error
        except (OSError, ValidationError) as error:
            raise InvalidSetting("the enrolment cannot be read", path=str(self.record_file)) from error

    def credentials(self) -> SiteCredentials:
        """Return who the site is; raises as :meth:`read_record` and :meth:`read_key` do."""
        enrolment = self.read_record().enrolment
        return SiteCredentials(
            job_id=enrolment.job_id,
            pseudonym=enrolment.site.pseudonym,
            server_key=enrolment.server_key,
            private_key=self.read_key(),
        )

    def keep_policy(self, policy: SitePolicy) -> None:
        """Write a policy for the owner to look at and edit, unless there is one."""
        if not self.policy_file.exists():
            data = policy.model_dump(mode="json")
            write_durably(self.policy_file, (_POLICY_HEAD + yaml.safe_dump(data, sort_keys=False)).encode())

    def read_policy(self) -> SitePolicy:
        """Return what the site lets itself be asked; raise :class:`InvalidSetting` with every problem. Without a file, anything."""
        try:
            text = self.policy_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return SitePolicy()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSetting("the policy cannot be read", path=str(self.policy_file)) from error
        return _parse_policy(text, str(self.policy_file))


def _ensure_key(path: Path) -> bytes:
    with suppress(NotFound):
        return _read_key(path)
    key = secrets.token_bytes(_KEY_BYTES)
    write_durably(path, key.hex().encode() + b"\n")
    return key


def _read_key(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise NotFound("the site has no key", path=str(path), hint="wgctl site enrol makes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting("the site's key cannot be read", path=str(path)) from error
    if mode & _OTHERS:
        raise InvalidSetting("others may read the site's key", path=str(path), hint=f"chmod 600 {path}")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise InvalidSetting("the file does not hold a key", path=str(path), hint="64 hex digits")
    return key


_POLICY_HEAD = """\
# What this site lets itself be asked; the server never sees this file. What it forbids is declined, and the reason is told.
# Names may end in *, null is without limit.
"""


def _parse_policy(text: str, where: str) -> SitePolicy:
    try:
        data = parse_yaml(text).data
        return SitePolicy.model_validate({} if data is None else data)
    except ValidationError as error:
        problems = [
            Problem(path=f"{where}: {'.'.join(str(step) for step in item['loc'])}", message=item["msg"], value=str(item["input"])[:120])
            for item in error.errors()
        ]
    except WegeftError as error:
        problems = [problem.model_copy(update={"path": f"{where}: {problem.path}"}) for problem in error.problems]
    raise InvalidSetting("the site's policy is not valid", problems=problems)


def agreed_policy(spec: JobSpec) -> SitePolicy:
    """Return the policy that lets the site be asked what it has agreed to, and nothing else."""
    assert spec.federation is not None  # noqa: S101 - an enrolment is in a federated job
    return SitePolicy(
        allowed_base_models=(pinned_name(spec),),
        allowed_rules=(spec.federation.rule.name,),
        max_steps=spec.max_steps,
        max_rank=spec.effective_rank,
        max_update_norm=spec.federation.max_update_norm,
    )


def pinned_name(spec: JobSpec) -> str:
    """Return the base model as offers name it."""
    return spec.base_model if spec.base_model_revision is None else f"{spec.base_model}@{spec.base_model_revision}"
