"""What a federation's site says to its server: every request is signed with the site's own key, and every connection goes outward."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from pydantic import ValidationError

from wegeft.client.blobs import STORE_SECONDS, fetch_resumable
from wegeft.client.transport import Answer, Call, Transport, json_body
from wegeft.client.uploads import upload_in_parts
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.enrolment import Enrolment, EnrolmentRequest, InvitationLook, Terms, enrolment_content
from wegeft.contracts.errors import InvalidSetting, UnexpectedAnswer
from wegeft.contracts.federation import Decline, Message, Offer, SignedReceipt, SignedUpdate, Update
from wegeft.contracts.rotation import RotationRequest, rotation_content
from wegeft.contracts.signatures import is_signed, public_key_of, request_content, sign
from wegeft.contracts.uploads import ONE_REQUEST_BYTES

OFFER_SECONDS = 25
"""How long one question for the next offer stays open."""
MAX_START_BYTES = 4 << 30
"""Of what an offer starts from: half of a server's own state, which has the same numbers in double precision."""

Clock = Callable[[], datetime]

_JSON = {"Content-Type": "application/json"}
_NO_CONTENT = 204


@dataclass(frozen=True, kw_only=True)
class SiteCredentials:
    """Who a site is in one federation."""

    job_id: str
    pseudonym: str
    server_key: str
    """With which the server signs receipts."""
    private_key: bytes = field(repr=False)
    """Ed25519, 32 bytes; it never leaves the site."""


def enrol(server: str, token: str, private_key: bytes, max_examples: int) -> Enrolment:
    """Take up an invitation with the site's own key; the same token and key again give the same answer.

    Raises :class:`Unauthenticated` for a token that is unknown, expired or used, and :class:`InvalidSetting` for one that is none.
    """
    public_key = public_key_of(private_key)
    proof = sign(private_key, enrolment_content(token, public_key, max_examples))
    try:
        request = EnrolmentRequest(token=token, public_key=public_key, max_examples=max_examples, proof=proof)
    except ValidationError as error:
        field_name = str(error.errors()[0]["loc"][0])
        hint = "copy it whole: wgi_…" if field_name == "token" else None
        raise InvalidSetting("not an invitation's token" if hint else "not acceptable", path=f"--{field_name}", hint=hint) from error
    return _own_enrolment(_enter(server, "enrolments", request, Enrolment), public_key)


def read_invitation(server: str, token: str) -> Terms:
    """Return what an invitation asks for, without taking it up; raises as :func:`enrol` does."""
    try:
        request = InvitationLook(token=token)
    except ValidationError as error:
        raise InvalidSetting("not an invitation's token", path="--token", hint="copy it whole: wgi_…") from error
    return _enter(server, "invitations", request, Terms)


def bind_key(server: str, token: str, private_key: bytes) -> Enrolment:
    """Let the site that a token is for have this key from now on; the same token and key again give the same answer.

    Raises :class:`Unauthenticated` for a token that is unknown, expired or used, and :class:`InvalidSetting` for one that is none.
    """
    public_key = public_key_of(private_key)
    proof = sign(private_key, rotation_content(token, public_key))
    try:
        request = RotationRequest(token=token, public_key=public_key, proof=proof)
    except ValidationError as error:
        raise InvalidSetting("not a token for a new key", path="--token", hint="copy it whole: wgr_…") from error
    return _own_enrolment(_enter(server, "rotations", request, Enrolment), public_key)


def _enter(server: str, where: str, request: Message, answer: type[Answer]) -> Answer:
    """Ask where a site is known by the token in the body alone."""
    transport = Transport(server, None, timeout_seconds=30.0, patience_seconds=5.0)
    try:
        return transport.ask(Call(method="POST", path=f"/federation/{where}", headers=_JSON, content=json_body(request)), answer)
    finally:
        transport.close()


def _own_enrolment(enrolment: Enrolment, public_key: str) -> Enrolment:
    if enrolment.site.public_key != public_key:
        raise UnexpectedAnswer("the server enrolled another key than ours", path="public_key", value=enrolment.site.public_key)
    return enrolment


class SiteClient:
    """The server of a federation, for one enrolled site; a context manager that closes its connections.

    Calls that fail in a way that may pass are tried again for ``patience_seconds``, each time signed anew; all are harmless to repeat.
    :class:`Unauthenticated` means a key or clock that the server does not take, :class:`Forbidden` that the site may not.
    """

    def __init__(
        self,
        server: str,
        credentials: SiteCredentials,
        clock: Clock,
        *,
        timeout_seconds: float = 30.0,
        patience_seconds: float = 5.0,
        one_request_bytes: int = ONE_REQUEST_BYTES,
    ) -> None:
        """``one_request_bytes``: longer updates go in parts."""
        self._credentials = credentials
        self._one_request_bytes = one_request_bytes
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._transport = Transport(
            server, None, timeout_seconds=timeout_seconds, patience_seconds=patience_seconds, sign=self._signature_headers
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _signature_headers(self, method: str, path: str, body: bytes) -> Mapping[str, str]:
        timestamp, nonce = self._clock().isoformat(), secrets.token_hex(16)
        content = request_content(method, path, body, timestamp, nonce)
        return {
            "Wegeft-Site": f"{self._credentials.job_id}/{self._credentials.pseudonym}",
            "Wegeft-Timestamp": timestamp,
            "Wegeft-Nonce": nonce,
            "Wegeft-Signature": sign(self._credentials.private_key, content),
        }

    def enrolment(self) -> Enrolment:
        """Return what the site has agreed to, and where it stands now."""
        return self._transport.ask(Call(method="GET", path="/federation/site"), Enrolment)

    def offer(self, wait_seconds: int = OFFER_SECONDS) -> Offer | None:
        """Return what the site is asked, waiting so long for it; None where it is asked nothing yet.

        Raises :class:`FederationOver` once there will be no more, and :class:`UnexpectedAnswer` for an offer to somebody else.
        """
        call = Call(
            method="GET",
            path="/federation/offer",
            params={"wait": wait_seconds},
            read_seconds=wait_seconds + self._timeout_seconds,
        )

        def once() -> bytes:
            with self._transport.open(call) as response:
                return b"" if response.status_code == _NO_CONTENT else self._transport.read(response)

        content = self._transport.retry(once)
        return self._own_offer(content) if content else None

    def _own_offer(self, content: bytes) -> Offer:
        try:
            offer = Offer.model_validate_json(content)
        except ValidationError as error:
            raise UnexpectedAnswer("the offer is not one of this protocol", path="offer") from error
        if (offer.job_id, offer.site) != (self._credentials.job_id, self._credentials.pseudonym):
            raise UnexpectedAnswer("the offer is for another site", path="offer.site", value=offer.site)
        return offer

    def fetch_blob(self, digest: str, path: Path, max_bytes: int = MAX_START_BYTES) -> None:
        """Write what an offer names to the new file ``path``, verified; what came before a connection broke is not asked for again.

        Raises :class:`UnexpectedAnswer` where it is longer than ``max_bytes``.
        """
        fetch_resumable(self._transport, f"/federation/blobs/{quote(digest, safe=':')}", path, digest, max_bytes)

    def store_blob(self, content: bytes) -> None:
        """Store the tensors of an update under their digest: in one request, or where they are long, in parts that are sent once."""
        if len(content) > self._one_request_bytes:
            upload_in_parts(self._transport, "/federation/uploads", content)
            return
        path = f"/federation/blobs/{quote(digest_of(content), safe=':')}"
        headers = {"Content-Type": "application/octet-stream"}
        self._transport.tell(Call(method="PUT", path=path, headers=headers, content=lambda: content, read_seconds=STORE_SECONDS))

    def submit(self, update: Update) -> SignedReceipt:
        """Sign and send an update whose tensors are stored, and return the server's receipt for it, verified.

        Raises :class:`StaleRound` where its round is over, :class:`InvalidInput` with everything that is wrong with it, and
        :class:`UnexpectedAnswer` for a receipt of something else or in another name.
        """
        signed = SignedUpdate(update=update, signature=sign(self._credentials.private_key, update.to_bytes()))
        call = Call(method="POST", path="/federation/updates", headers=_JSON, content=signed.to_bytes, read_seconds=STORE_SECONDS)
        receipt = self._transport.ask(call, SignedReceipt)
        check_receipt(receipt, update, self._credentials.server_key)
        return receipt

    def decline(self, decline: Decline) -> None:
        """Say that the site will not, or could not, do what it is asked."""
        self._transport.tell(Call(method="POST", path="/federation/declines", headers=_JSON, content=decline.to_bytes))

    def clock_lead(self) -> timedelta:
        """Return how far this machine's clock is ahead of the server's, to about two seconds; negative where it is behind."""

        def once() -> datetime:
            with self._transport.open(Call(method="GET", path="//healthz")) as response:
                try:
                    return parsedate_to_datetime(response.headers["Date"])
                except (KeyError, ValueError) as error:
                    raise UnexpectedAnswer("the server does not say what time it is", path="Date") from error

        return self._clock() - self._transport.retry(once)


def check_receipt(signed: SignedReceipt, update: Update, server_key: str) -> None:
    """Raise :class:`UnexpectedAnswer` unless the receipt is for this very update, and signed with the server's key."""
    receipt = signed.receipt
    if not is_signed(server_key, receipt.to_bytes(), signed.signature):
        raise UnexpectedAnswer("the receipt is not signed with the server's key", path="signature", hint="ask who runs the server")
    said = (receipt.job_id, receipt.round, receipt.attempt, receipt.site, receipt.update, receipt.tensors)
    if said != (update.job_id, update.round, update.attempt, update.site, update.digest, update.tensors):
        raise UnexpectedAnswer("the receipt is for another update", path="receipt", value=receipt.update)
