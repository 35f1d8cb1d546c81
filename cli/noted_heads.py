"""Where each service's audit log ended when it was last checked from here: a log that was cut since does not hold that entry any more."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from cli.home import Home
from wegeft.contracts.audit import AuditHead
from wegeft.contracts.errors import InvalidSetting


class _Heads(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    servers: dict[str, AuditHead] = {}


class NotedHeads:
    """A file of the home folder; of two processes that write, the last one wins."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.path = home.audit_heads_file

    def find(self, server: str) -> AuditHead | None:
        """Return where a service's log ended; None for one that was never checked."""
        return self._read().servers.get(server)

    def note(self, server: str, head: AuditHead) -> None:
        """Keep where a service's log ends."""
        heads = _Heads(servers={**self._read().servers, server: head})
        self._home.write_audit_heads(heads.model_dump_json(indent=2) + "\n")

    def _read(self) -> _Heads:
        try:
            return _Heads.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return _Heads()
        except (OSError, ValidationError) as error:
            hint = "delete it to begin with the log as it is now"
            raise InvalidSetting("the file of noted audit logs cannot be read", path=str(self.path), hint=hint) from error
