"""Federated jobs, for the people who run them: invitations, sites and rounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from pydantic import RootModel

from wegeft.client.blobs import fetch
from wegeft.client.transport import Call, Transport, json_body
from wegeft.contracts.enrolment import FederationView, Invitation, InvitationRequest, RoundView, SiteView
from wegeft.contracts.errors import UnexpectedAnswer
from wegeft.contracts.rollback import Rollback, RollbackRequest
from wegeft.contracts.rotation import Rotation, RotationOrder
from wegeft.contracts.round_evidence import RoundEvidence

_JSON = {"Content-Type": "application/json"}


class _Rounds(RootModel[tuple[RoundView, ...]]):
    pass


class FederationClient:
    """The federations of one service, with a user's token; safe to use from several threads."""

    def __init__(self, server: str, token: str, *, timeout_seconds: float = 30.0, patience_seconds: float = 5.0) -> None:
        self._transport = Transport(server, token, timeout_seconds=timeout_seconds, patience_seconds=patience_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def invite(self, job_id: str, request: InvitationRequest) -> Invitation:
        """Make an invitation and return it; its token is told this once, so the call is not repeated by itself.

        It replaces an unused one of the same name. Raises :class:`Conflict` where a site of that name has enrolled.
        """
        call = Call(method="POST", path=f"{_path(job_id)}/invitations", headers=_JSON, content=json_body(request))
        return self._transport.ask(call, Invitation, patience_seconds=0)

    def withdraw(self, job_id: str, name: str) -> None:
        """Make an unused invitation worthless; raise :class:`NotFound` where there is none."""
        self._transport.tell(Call(method="DELETE", path=f"{_path(job_id)}/invitations/{quote(name, safe='')}"))

    def view(self, job_id: str) -> FederationView:
        """Return a federated job as far as it is; raise :class:`JobNotFound`."""
        return self._transport.ask(Call(method="GET", path=f"{_path(job_id)}/federation"), FederationView)

    def approve(self, job_id: str, name: str) -> SiteView:
        """Let a site be asked in rounds; again is harmless. Raises :class:`Conflict` where it is revoked."""
        return self._move(job_id, name, "approve")

    def revoke(self, job_id: str, name: str) -> SiteView:
        """Never ask a site again; again is harmless."""
        return self._move(job_id, name, "revoke")

    def _move(self, job_id: str, name: str, verb: str) -> SiteView:
        return self._transport.ask(Call(method="POST", path=f"{_path(job_id)}/sites/{quote(name, safe='')}/{verb}"), SiteView)

    def rotate(self, job_id: str, name: str, order: RotationOrder) -> Rotation:
        """Let a site bind a new key and return the token for it, which is told this once, so the call is not repeated by itself.

        It replaces an earlier one. Raises :class:`NotFound` for an unknown site, and :class:`Conflict` for a revoked one.
        """
        path = f"{_path(job_id)}/sites/{quote(name, safe='')}/rotate"
        return self._transport.ask(Call(method="POST", path=path, headers=_JSON, content=json_body(order)), Rotation, patience_seconds=0)

    def roll_back(self, job_id: str, request: RollbackRequest) -> Rollback:
        """Go on from an earlier round, or let an ended job's aliases point back; the same again changes nothing.

        Raises :class:`NotFound` for a round or version that is not the federation's, and :class:`Conflict` where it cannot be done now.
        """
        return self._transport.ask(
            Call(method="POST", path=f"{_path(job_id)}/rollbacks", headers=_JSON, content=json_body(request)), Rollback
        )

    def rounds(self, job_id: str) -> Iterator[RoundView]:
        """Yield every try at every round, newest first, reading page after page."""
        before: int | None = None
        while True:
            params = {} if before is None else {"before": before}
            page = self._transport.ask(Call(method="GET", path=f"{_path(job_id)}/rounds", params=params), _Rounds).root
            yield from page
            if not page or page[-1].round == 1:
                return
            if before is not None and page[-1].round >= before:
                raise UnexpectedAnswer("the rounds' numbers do not fall", path=job_id, value=page[-1].round)
            before = page[-1].round

    def evidence(self, job_id: str, number: int) -> RoundEvidence:
        """Return from what a committed round can be checked; raise :class:`NotFound` where it is not committed."""
        return self._transport.ask(Call(method="GET", path=f"{_path(job_id)}/rounds/{number}/evidence"), RoundEvidence)

    def fetch_round_blob(self, job_id: str, number: int, digest: str, path: Path) -> None:
        """Write bytes that a committed round names to the new file ``path``, verified.

        Raises :class:`Forbidden` for whoever is no administrator, and :class:`BlobNotFound` where they are gone.
        """
        fetch(self._transport, f"{_path(job_id)}/rounds/{number}/blobs/{quote(digest, safe=':')}", path, digest)

    def round(self, job_id: str, number: int) -> RoundView:
        """Return a round; raise :class:`NotFound`."""
        return self._transport.ask(Call(method="GET", path=f"{_path(job_id)}/rounds/{number}"), RoundView)


def _path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"
