"""What a federation's server and its sites tell each other: sites, offers, signed updates, receipts and the record of a round."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from wegeft.contracts.adapter import Digest
from wegeft.contracts.control_variates import ControlTerms
from wegeft.contracts.errors import Problem
from wegeft.contracts.federation_rules import Defence, Rule, ServerOptimiser, SiteName
from wegeft.contracts.wire import Wire

Finite = Annotated[float, Field(allow_inf_nan=False)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
KeyText = Annotated[str, StringConstraints(pattern=r"^ed25519:[0-9a-f]{64}$")]
SignatureText = Annotated[str, StringConstraints(pattern=r"^ed25519:[0-9a-f]{128}$")]
Instant = Annotated[AwareDatetime, AfterValidator(lambda time: time.astimezone(UTC))]
RoundNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
Later = Field(exclude_if=lambda value: value is None)
"""Of a field that came after a message's first version: where it says nothing, the message is written, and signed, as before."""
TensorName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.+@-]{1,256}$")]


class Message(BaseModel):
    """Something that is signed or kept: nothing unknown is taken, nothing changes, and it has one way to be written."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def to_bytes(self) -> bytes:
        """Return the canonical serialisation: JSON, keys sorted, no spaces, ASCII. Equal messages give equal bytes."""
        data: Any = self.model_dump(mode="json")
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()

    @property
    def digest(self) -> str:
        """``sha256:…`` of the canonical bytes."""
        return "sha256:" + hashlib.sha256(self.to_bytes()).hexdigest()


class SiteState(StrEnum):
    """What a site may do."""

    PENDING = "pending"
    """It has enrolled, and waits for a person to approve it."""
    APPROVED = "approved"
    """It is asked in rounds."""
    REVOKED = "revoked"
    """It is never asked again."""


class RoundState(StrEnum):
    """Where a round is; ``committed`` and ``failed`` are final."""

    CREATED = "created"
    SELECTING = "selecting"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    COMMITTED = "committed"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing can happen to the round any more."""
        return self in {RoundState.COMMITTED, RoundState.FAILED}


class ReasonCode(StrEnum):
    """Why a site's work is not in a round."""

    NOT_SELECTED = "not_selected"
    """It was not drawn."""
    NO_ANSWER = "no_answer"
    """It was asked, and sent nothing before the round closed."""
    LATE = "late"
    """Its update came after the round had closed."""
    DECLINED = "declined"
    """Its own policy forbids what it was asked."""
    TRAINING_FAILED = "training_failed"
    """It tried, and says that training failed."""
    REFUSED = "refused"
    """All that it sent had problems."""
    REVOKED = "revoked"
    """Its enrolment was revoked while the round was open."""
    NO_WEIGHT = "no_weight"
    """The defence gave its update no weight."""
    TOO_STALE = "too_stale"
    """More than max_staleness versions had come out since the one that its update started from."""
    BUFFERED = "buffered"
    """Its update waits in the buffer for the next version."""
    ROLLED_BACK = "rolled_back"
    """Its update waited in the buffer when the federation went back to an earlier round."""


class FailureCode(StrEnum):
    """Why a round failed."""

    NOT_ENOUGH_SITES = "not_enough_sites"
    """Fewer than min_sites could be asked before the deadline."""
    NO_QUORUM = "no_quorum"
    """Fewer than min_sites updates were accepted before the deadline."""
    PRECONDITION = "precondition"
    """The defence or rule cannot keep its promise for these updates."""
    NOT_FINITE = "not_finite"
    """The aggregate holds a number that is not finite."""
    CANCELLED = "cancelled"
    """The job ended while the round was open."""
    ROLLED_BACK = "rolled_back"
    """The federation went back to an earlier round while this one was open."""


class Site(Message):
    """A site, as the server knows it."""

    name: SiteName
    """What its members call it; in records a pseudonym stands for it."""
    pseudonym: Identifier
    """What stands for it in published records; members are sorted by it."""
    public_key: KeyText
    """Ed25519; the private key never leaves the site."""
    state: SiteState
    max_examples: Annotated[int, Field(ge=1)]
    """Examples that it declared at enrolment to have at most."""
    enrolled_at: Instant


class TensorForm(Message):
    """What one tensor of an update must be."""

    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=1 << 24)], ...], Field(min_length=1, max_length=4)]


class FeedbackTerms(Message):
    """What a site must know to send later what the wire cuts off."""

    counted: Digest | None = None
    """The file of the site's last update that is in what it starts from; what was cut off up to that one is owed. None without any."""


class Offer(Message):
    """What a site is asked to do in a round."""

    version: Literal[1, 2] = 1
    """Version of this message, and of the update that answers it; 2 asks for control variates too."""
    job_id: Identifier
    round: RoundNumber
    """Number of the round, from 1."""
    attempt: RoundNumber = 1
    """Rounds that failed are tried again under the same number; this counts."""
    site: Identifier
    """Pseudonym of the site that is asked."""
    base_model: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    """As pinned by the server: an id with its commit, or a file with its digest."""
    start: Digest
    """The generator to start from, by the digest of its bytes."""
    rank: Annotated[int, Field(ge=1, le=65_536)]
    """Rank that this site trains."""
    rule: Rule
    """How the updates will be put together."""
    tensors: Annotated[dict[TensorName, TensorForm], Field(min_length=1)]
    """Exactly what to send, by name: how far each of these has moved from ``start``."""
    wire: Wire = "fp32"
    """Numbers in which to send it."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps at most; None leaves it to the job's epochs."""
    max_update_norm: Annotated[float, Field(gt=0)]
    """Frobenius norm over all generators beyond which an update is refused."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the order of rows, with the site's name."""
    deadline_at: Instant
    """When the round closes at the latest."""
    control: Annotated[ControlTerms | None, Later] = None
    """With SCAFFOLD, what goes for the control variates among ``tensors``."""
    feedback: Annotated[FeedbackTerms | None, Later] = None
    """On a wire that cuts something off, what is owed; absent where nothing is."""


class Update(Message):
    """What a site says of the tensors that it sends; the signature is over the canonical bytes of this."""

    version: Literal[1, 2] = 1
    """That of the offer."""
    job_id: Identifier
    round: RoundNumber
    attempt: RoundNumber = 1
    site: Identifier
    """Its pseudonym."""
    offer: Digest
    """Digest of the offer that it answers."""
    base_model: Annotated[str, StringConstraints(max_length=4096)]
    """The base model that it trained on, as pinned."""
    start: Digest
    """The generator that it started from."""
    tensors: Digest
    """The tensors' bytes in the store."""
    size: Annotated[int, Field(ge=0)]
    """Bytes of them."""
    examples: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    """Rows that it trained on: its weight."""
    steps: Annotated[int, Field(ge=0, lt=2**63)]
    """Optimizer steps done."""
    metrics: Annotated[dict[TensorName, Finite], Field(max_length=32)] = Field(default_factory=dict)
    """For example ``train_loss`` and ``eval_loss``."""
    control_from: Annotated[Digest | None, Later] = None
    """The file of the update after which the site's control variate was what it went on from; absent where it began at zero."""


class SignedUpdate(Message):
    """An update and its author's word for it."""

    update: Update
    signature: SignatureText
    """By the site's key, over the update's canonical bytes."""


class Receipt(Message):
    """The server's word that an update is safe: its bytes are in the store and its row is committed."""

    version: Literal[1] = 1
    """Version of this message."""
    job_id: Identifier
    round: RoundNumber
    attempt: RoundNumber
    site: Identifier
    update: Digest
    """Digest of the update's canonical bytes."""
    tensors: Digest
    received_at: Instant


class SignedReceipt(Message):
    """A receipt and the server's signature."""

    receipt: Receipt
    signature: SignatureText
    """By the server's key, over the receipt's canonical bytes."""


class Decline(Message):
    """A site's answer that it will not, or could not, do what it was asked."""

    version: Literal[1] = 1
    """Version of this message."""
    job_id: Identifier
    round: RoundNumber
    attempt: RoundNumber = 1
    site: Identifier
    reason: Literal[ReasonCode.DECLINED, ReasonCode.TRAINING_FAILED]
    problems: Annotated[tuple[Problem, ...], Field(max_length=100)] = ()
    """What stands in the way, in words that the site is ready to share."""


class Member(Message):
    """A site whose update is in a round's aggregate."""

    site: Identifier
    """Its pseudonym."""
    update: Digest
    """Digest of its update's canonical bytes, as on its receipt."""
    tensors: Digest
    examples: int
    weight: Finite
    """Factor of its update in the aggregate, after the defence."""
    agreement: Finite | None = None
    """Cosine of its update with the aggregate of the others."""
    influence: Finite | None = None
    """How far the aggregate moves without it, as a share of the aggregate's norm."""
    contribution: Annotated[Finite | None, Later] = None
    """Its share of the aggregate: of what it weighs, the part along the aggregate; over all members they add up to 1."""
    staleness: Annotated[int | None, Later] = None
    """In buffered mode, the versions that had come out since the one that it started from."""
    position: Annotated[int | None, Later] = None
    """In buffered mode, its place in the order in which updates were accepted, from 1."""
    start: Annotated[Digest | None, Later] = None
    """State of the federation that it started from, where that is not the round's."""


class Exclusion(Message):
    """A site whose work is not in a round, and why."""

    site: Identifier
    reason: ReasonCode
    problems: tuple[Problem, ...] = ()


class RoundRecord(Message):
    """Everything from which a member can compute a committed round again; or why it failed."""

    version: Literal[1] = 1
    """Version of this message."""
    job_id: Identifier
    round: RoundNumber
    attempt: RoundNumber = 1
    state: RoundState
    rule: Rule
    server_optimizer: ServerOptimiser
    defence: Defence
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    """Of the round: for its selection and for random projections."""
    start: Digest
    """State of the federation before the round: factors, residuals, what was carried over, and the optimizer's moments."""
    result: Digest | None = None
    """State after it; None where it failed."""
    members: tuple[Member, ...] = ()
    """Sorted by pseudonym."""
    left_out: tuple[Exclusion, ...] = ()
    """Sorted by pseudonym."""
    measures: dict[str, Finite] = Field(default_factory=dict)
    """``aggregation_residual``, ``cut_energy``, ``update_norm``, …"""
    control_sites: Annotated[int | None, Later] = None
    """With SCAFFOLD, the sites whose control variates the server's was the mean of."""
    score_arithmetic: Annotated[Annotated[int, Field(ge=1, le=2**31 - 1)] | None, Later] = None
    """Version of the arithmetic of updates' inner products, from which scores and most defences' weights follow; None: before 2."""
    failure: FailureCode | None = None
    published: str | None = None
    """``namespace/name@version``; None where nothing was published."""
    created_at: Instant
    closed_at: Instant | None = None
