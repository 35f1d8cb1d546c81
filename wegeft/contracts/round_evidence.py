"""Everything besides bytes from which anybody can check a committed round, and compute it again with them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wegeft.contracts.federation import Identifier, Instant, KeyText, Message, Offer, RoundRecord, SignedReceipt, SignedUpdate
from wegeft.contracts.federation_rules import SiteName
from wegeft.contracts.job import JobSpec


class KeySpan(Message):
    """A key that a site has or had."""

    public_key: KeyText
    until: Instant | None
    """When another one replaced it; None for the present one."""


class RoundEvidence(Message):
    """What is known of a committed round; the bytes that it names are asked for by their digests."""

    record: RoundRecord
    parent: Annotated[int, Field(ge=0)]
    """Number of the round from whose result it started; 0 for the federation's beginning."""
    spec: JobSpec
    pseudonyms: dict[SiteName, Identifier]
    """What stands for each site in the record."""
    offers: dict[Identifier, Offer]
    """What each member was asked, by pseudonym."""
    updates: tuple[SignedUpdate, ...]
    """Of the members, by pseudonym."""
    receipts: tuple[SignedReceipt, ...]
    """The very ones that the members got, in the same order."""
    keys: dict[Identifier, tuple[KeySpan, ...]]
    """Of each member, by pseudonym, oldest first."""
    server_key: KeyText
    """With which receipts are signed."""
