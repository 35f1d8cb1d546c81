"""What becomes of a site's answer: its bytes are checked, it is kept with the moment it came, and the site gets a signed receipt."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from hub.objects import ObjectStore, read_verified
from infra.database import reading, writing
from orchestrator.aggregate import FederationState
from orchestrator.federation_files import read_state
from orchestrator.federation_round import closing_of
from orchestrator.ledger import buffers, federations, rounds, site_keys
from orchestrator.ledger.rounds import RoundKey
from orchestrator.rounds import Arrival
from orchestrator.services import OrchestratorServices
from orchestrator.update_gate import Terms, check_content
from wegeft.contracts.errors import FederationOver, InvalidRequest, NotFound, Problem, StaleRound, TooStale, shorten
from wegeft.contracts.federation import Decline, Offer, ReasonCode, Receipt, RoundState, SignedReceipt, SignedUpdate, Site, Update
from wegeft.contracts.federation_rules import Buffered
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.signatures import sign
from wegeft.contracts.wire import bytes_on

_HEADER_BYTES, _TENSOR_HEADER_BYTES = 4096, 512
_KEPT_STATES = 2
_TOLD_PROBLEMS, _TOLD_CHARACTERS = 20, 300
_MAX_STATE_BYTES = 8 << 30


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A site whose request was signed by its own key just now."""

    job_id: str
    site: Site


def longest_upload(offer: Offer) -> int:
    """Return how many bytes the file that an offer asks for can have: its numbers as they travel, and a header."""
    numbers = sum(bytes_on(offer.wire, form.shape) for form in offer.tensors.values())
    entries = len(offer.tensors) * (2 if offer.wire == "int8" else 1)
    return numbers + _HEADER_BYTES + _TENSOR_HEADER_BYTES * entries


class _States:
    """The states that open rounds start from, read once for all sites of a round."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, FederationState] = OrderedDict()

    def read(self, digest: str) -> FederationState:
        with self._lock:
            if digest not in self._kept:
                self._kept[digest] = read_state(read_verified(self._store, digest, _MAX_STATE_BYTES))
            self._kept.move_to_end(digest)
            while len(self._kept) > _KEPT_STATES:
                self._kept.popitem(last=False)
            return self._kept[digest]


class UpdateIntake:
    """Takes what sites answer."""

    def __init__(self, services: OrchestratorServices, key: bytes) -> None:
        """``key``: the server's private key, which signs receipts."""
        self._services = services
        self._key = key
        self._states = _States(services.store)

    def take_update(self, caller: Caller, signed: SignedUpdate) -> SignedReceipt:
        """Return a receipt for an update; the same update again gets the same one.

        Raises :class:`InvalidRequest` with all problems of one that cannot be a member, which is kept as refused and may be mended;
        :class:`StaleRound` for one that comes too late, :class:`NotFound` where the site was not asked, and :class:`Conflict` where another
        answer of it was taken; in buffered mode :class:`TooStale` for one that started too long ago, which is kept as that.
        """
        update = signed.update
        key = self._key_of(caller, update.job_id, update.site, (update.round, update.attempt))
        with reading(self._services.engine) as connection:
            known = rounds.find_arrival(connection, key, update.site, update.digest)
        arrival = self._judge(caller, key, signed) if known is None or rounds.is_open_again(known) else known
        if arrival.reason is ReasonCode.TOO_STALE:
            text = f"the update started from round {key.number}, and too many versions have come out since"
            raise TooStale(text, path="round", value=str(key.number), hint="ask for the newest offer")
        if arrival.problems:
            count = len(arrival.problems)
            raise InvalidRequest(f"{count} problem{'s' if count != 1 else ''} with the update", problems=arrival.problems)
        return make_receipt(self._key, update, arrival.received_at)

    def take_decline(self, caller: Caller, decline: Decline) -> None:
        """Keep a site's answer that it will not or cannot; raises as :meth:`take_update` does. Harmless to repeat."""
        key = self._key_of(caller, decline.job_id, decline.site, (decline.round, decline.attempt))
        with reading(self._services.engine) as connection:
            if rounds.find_arrival(connection, key, decline.site, decline.digest) is not None:
                return
        _, section = self._find_offer(caller, key)
        self._receive(caller, key, (decline, kept_problems(decline)), section)

    def _key_of(self, caller: Caller, job_id: str, site: str, which: tuple[int, int]) -> RoundKey:
        expected = {"job_id": (job_id, caller.job_id), "site": (site, caller.site.pseudonym)}
        problems = [
            Problem(path=path, message=f"must be {right}, who signed the request", value=told)
            for path, (told, right) in expected.items()
            if told != right
        ]
        if problems:
            raise InvalidRequest("the answer is not the caller's own", problems=problems)
        return RoundKey(job_id=job_id, number=which[0], attempt=which[1])

    def _find_offer(self, caller: Caller, key: RoundKey) -> tuple[Offer, FederationSpec]:
        with reading(self._services.engine) as connection:
            job = federations.find_federated(connection, key.job_id)
            if not isinstance(job.section.mode, Buffered):
                _check_open(connection, key)
            elif job.state.is_final:
                raise FederationOver(f"job {job.id} has {job.state}", path="job", value=str(job.state))
            else:
                _check_not_undone(connection, key)
            offer = rounds.find_offer(connection, key, caller.site.pseudonym)
        if offer is None:
            raise NotFound("the site was not asked in this round", path="round", value=str(key.number), hint="ask for an offer")
        return offer, job.section

    def _judge(self, caller: Caller, key: RoundKey, signed: SignedUpdate) -> Arrival:
        offer, section = self._find_offer(caller, key)
        with reading(self._services.engine) as connection:
            if isinstance(section.mode, Buffered):
                is_delivered = buffers.has_delivered(connection, key.job_id, caller.site.pseudonym, signed.update.tensors)
            else:
                is_delivered = rounds.has_delivered(connection, key, caller.site.pseudonym, signed.update.tensors)
            start = rounds.find_start(connection, key)
        if not is_delivered:
            # Nothing is kept of it: the same update is right once its bytes are here.
            message = "the site did not send these bytes in this round"
            raise InvalidRequest(message, path="tensors", value=signed.update.tensors, hint="PUT them first")
        terms = Terms(offer=offer, site=caller.site, state=self._states.read(start), now=self._services.clock())
        return self._receive(caller, key, (signed, self._problems(signed, terms)), section)

    def _problems(self, signed: SignedUpdate, terms: Terms) -> list[Problem]:
        content = read_verified(self._services.store, signed.update.tensors, longest_upload(terms.offer))
        return check_content(signed, content, terms)

    def _receive(
        self, caller: Caller, key: RoundKey, answer: tuple[SignedUpdate | Decline, list[Problem]], section: FederationSpec
    ) -> Arrival:
        now = self._services.clock()
        try:
            with writing(self._services.engine) as connection:
                site_keys.check_current(connection, caller.site)
                if isinstance(section.mode, Buffered):
                    arrival = buffers.receive(connection, key, *answer, section.mode, now)
                else:
                    arrival = rounds.receive(connection, key, *answer, closing_of(section), now)
        except StaleRound as error:
            with reading(self._services.engine) as connection:
                raise _stale(connection, key) from error
        self._services.bells.arrived.set()
        return arrival


def make_receipt(key: bytes, update: Update, received_at: datetime) -> SignedReceipt:
    """Return the server's word for an update that was accepted; the same bytes each time. ``key``: the server's private key."""
    receipt = Receipt(
        job_id=update.job_id,
        round=update.round,
        attempt=update.attempt,
        site=update.site,
        update=update.digest,
        tensors=update.tensors,
        received_at=received_at,
    )
    return SignedReceipt(receipt=receipt, signature=sign(key, receipt.to_bytes()))


def kept_problems(decline: Decline) -> list[Problem]:
    """Return why a site declines as it stands in the record: some problems, on a line each, however much the site says."""
    return [
        Problem(
            path=shorten(problem.path),
            message=shorten(problem.message, _TOLD_CHARACTERS),
            value=None if problem.value is None else shorten(problem.value),
            hint=None if problem.hint is None else shorten(problem.hint, _TOLD_CHARACTERS),
        )
        for problem in decline.problems[:_TOLD_PROBLEMS]
    ]


def _check_open(connection: Connection, key: RoundKey) -> None:
    newest = rounds.last_round(connection, key.job_id)
    if newest is not None and (newest[0] != key or newest[1] is not RoundState.COLLECTING):
        known = (newest[0].number, newest[0].attempt)
        if (key.number, key.attempt) <= known:
            raise _stale(connection, key)


def _check_not_undone(connection: Connection, key: RoundKey) -> None:
    try:
        buffers.check_not_undone(connection, key)
    except StaleRound as error:
        raise _stale(connection, key) from error


def _stale(connection: Connection, key: RoundKey) -> StaleRound:
    """Return the error that tells which round is the current one."""
    newest = rounds.last_round(connection, key.job_id)
    current = newest[0] if newest else key
    text = f"round {key.number}, try {key.attempt} is over; the newest is round {current.number}, try {current.attempt}"
    return StaleRound(text, path="round", value=str(current.number), hint="ask for the next one")
