"""Going back to an earlier round of a federation: what is asked for, and the record of who did it, why, and what became of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from wegeft.contracts.adapter import AdapterRef, Digest
from wegeft.contracts.errors import InvalidReference
from wegeft.contracts.federation import Instant, Message, RoundNumber

LAST_NUMBER = 2**31 - 1


def _check_version(text: str) -> str:
    try:
        return str(AdapterRef.parse(text))
    except InvalidReference as error:
        raise ValueError(str(error)) from error


def _as_given(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


VersionName = Annotated[str, StringConstraints(min_length=1, max_length=300), AfterValidator(_check_version)]
Target = Annotated[Annotated[int, Field(ge=0, le=LAST_NUMBER)] | VersionName, BeforeValidator(_as_given)]
"""A committed round by its number, 0 for where the federation began, or the version that it published, ``namespace/name@version``."""


class RollbackRequest(Message):
    """Go on from an earlier round."""

    to: Target
    reason: Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
    """Why, for whoever reads the record."""


class CancelledTry(Message):
    """A try at a round that was open and came to nothing."""

    round: RoundNumber
    attempt: RoundNumber


class MovedAlias(Message):
    """An alias that points to an earlier version again."""

    alias: str
    before: int
    """Number of the version that it pointed to."""
    after: int


class Rollback(Message):
    """What was done to go back; never changed."""

    number: RoundNumber
    """Of the federation's rollbacks, from 1."""
    to_round: Annotated[int, Field(ge=0)]
    """0 for where the federation began."""
    start: Digest
    """The state that the federation goes on from: generators, residual, optimizer."""
    opened_round: RoundNumber | None
    """Number of the round that starts from it, higher than all before; None where the job had ended."""
    cancelled: CancelledTry | None
    """What was in flight; None where nothing was."""
    aliases: tuple[MovedAlias, ...]
    """Of a job that had ended."""
    person: str
    """Name of the token that asked for it."""
    reason: str
    at: Instant
