"""How a site comes into a federation, and what people see of one: invitations, enrolments and views."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from wegeft.contracts.errors import Problem
from wegeft.contracts.federation import (
    Identifier,
    Instant,
    KeyText,
    Message,
    ReasonCode,
    RoundRecord,
    RoundState,
    SignatureText,
    Site,
)
from wegeft.contracts.federation_rules import SiteName
from wegeft.contracts.job import JobSpec
from wegeft.contracts.rollback import Rollback
from wegeft.contracts.training import JobState

InvitationToken = Annotated[str, StringConstraints(pattern=r"^wgi_[0-9a-f]{12}_[0-9a-f]{64}$")]
ExampleCount = Annotated[int, Field(ge=1, le=1_000_000_000)]


def enrolment_content(token: str, public_key: str, max_examples: int) -> bytes:
    """Return what a site signs with its new key to enrol, which shows that the key is its own."""
    return f"wegeft-enrolment-1\n{token}\n{public_key}\n{max_examples}".encode()


class InvitationRequest(Message):
    """A site that may enrol."""

    name: SiteName
    """What the federation's members call it."""
    expires_in_seconds: Annotated[int, Field(ge=60, le=90 * 86_400)] = 7 * 86_400
    """How long the invitation can be used."""
    approve: bool = False
    """Whether to ask the site in rounds as soon as it has enrolled, without another approval."""


class Invitation(Message):
    """A token with which one site can enrol once; it is shown this one time."""

    job_id: Identifier
    name: SiteName
    token: InvitationToken = Field(repr=False)
    expires_at: Instant


class InvitationLook(Message):
    """A token whose invitation is to be read before it is taken up."""

    token: InvitationToken = Field(repr=False)


class Terms(Message):
    """What a site that takes up an invitation agrees to."""

    job_id: Identifier
    name: SiteName
    """What the federation's members will call it."""
    approve: bool
    """Whether it is asked as soon as it has enrolled."""
    server_key: KeyText
    """With which the server will sign its receipts."""
    spec: JobSpec
    """The job: base model, rule, steps and everything else."""


class EnrolmentRequest(Message):
    """A site that takes up its invitation with a key of its own."""

    token: InvitationToken = Field(repr=False)
    public_key: KeyText
    """Ed25519; the private key never leaves the site."""
    max_examples: ExampleCount
    """Examples that it has at most: the most that it can weigh in a round."""
    proof: SignatureText
    """By the key, over :func:`enrolment_content`."""


class Enrolment(Message):
    """What a site has agreed to, and where it stands."""

    job_id: Identifier
    site: Site
    server_key: KeyText
    """With which the server signs its receipts."""
    spec: JobSpec
    """The job: base model, rule, steps and everything else."""


class SiteView(Message):
    """A site, as the federation's owner sees it."""

    site: Site
    rounds_joined: Annotated[int, Field(ge=0)]
    """Committed rounds in which its update was a member."""
    last_seen_at: Instant | None
    """When its last signed request came."""
    last_problem: ReasonCode | None
    """Why it has no part in the open round, or was left out of the last closed one that left it out."""
    problems: tuple[Problem, ...] = ()
    """What stood in the way then, as the site or the gate has told it."""


class RoundView(Message):
    """A round, as far as it is."""

    round: Annotated[int, Field(ge=1)]
    attempt: Annotated[int, Field(ge=1)]
    state: RoundState
    asked: Annotated[int, Field(ge=0)]
    """Sites that were sent an offer."""
    accepted: Annotated[int, Field(ge=0)]
    """Updates that passed the gate; of an open round of a buffered federation, those that wait, whatever round asked for them."""
    buffer_size: Annotated[int | None, Field(ge=1)] = None
    """In buffered mode, the updates that make a version."""
    record: RoundRecord | None
    """Everything of a round that is over; None before."""
    opened_at: Instant | None
    """When its present wait began: for sites to ask, or for their updates."""
    closes_at: Instant | None
    """When that wait ends at the latest; None where it does not wait."""
    is_undone: bool = False
    """Whether the round was committed, and the federation has gone back to one before it."""


class FederationView(Message):
    """A federated job, as far as it is."""

    job_id: Identifier
    state: JobState
    rounds_total: Annotated[int, Field(ge=1)]
    rounds_committed: Annotated[int, Field(ge=0)]
    """Without those that were undone."""
    sites: tuple[SiteView, ...]
    """By name."""
    current: RoundView | None
    """The newest try at the newest round; None before the first."""
    published: str | None
    """The last version that a round published, ``namespace/name@version``."""
    rollbacks: tuple[Rollback, ...] = ()
    """Each time that the federation went back to an earlier round, oldest first."""
    waiting_for: str | None = None
    """What it cannot go on without, in words; None where it goes on."""
