"""The gate that every update passes before it can be a member: nothing malformed, oversized or meant for another round comes through.

All problems are told at once, so that a site can mend them in one go. The tensors are looked at only when their names and shapes are
right, and their norm is taken only when they are finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import numpy as np

from orchestrator.aggregate.lengths import Length, length_of_update
from orchestrator.aggregate.state import Contribution, FederationState, Tensors
from wegeft.contracts.control_variates import is_control
from wegeft.contracts.errors import InvalidTensors, Problem, shorten
from wegeft.contracts.federation import Offer, SignedUpdate, Site, SiteState, Update
from wegeft.contracts.signatures import is_signed
from wegeft.contracts.wire import read_update

_DTYPES: Mapping[str, frozenset[str]] = {"fp32": frozenset({"float32"}), "bf16": frozenset({"float32"}), "int8": frozenset({"float32"})}
"""What the reader of updates gives for each wire format: it widens bfloat16, exactly, and multiplies int8 with its scales."""
_MOST_FORM_PROBLEMS = 100
"""Of names, types and shapes that are told: a file of many wrong names must not become an answer many times as long."""
_MAX_ENTRY = 1e30
"""Largest magnitude of a number: squares of more overflow."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """What an update is held to."""

    offer: Offer
    """As it was sent to this site."""
    site: Site
    """As enrolled."""
    state: FederationState
    """Where the round starts."""
    now: datetime


def check_content(signed: SignedUpdate, content: bytes, terms: Terms) -> list[Problem]:
    """Return everything that is wrong with an update and the file that came with it; empty where it may be a member."""
    problems = []
    if len(content) != signed.update.size:
        problems.append(Problem(path="size", message=f"the tensors have {len(content)} bytes", value=str(signed.update.size)))
    try:
        tensors = read_update(content, terms.offer.wire)
    except InvalidTensors as error:
        return problems + [problem.model_copy(update={"path": problem.path or "tensors"}) for problem in error.problems]
    return problems + check_update(signed, tensors, terms)


def check_update(signed: SignedUpdate, tensors: Tensors, terms: Terms) -> list[Problem]:
    """Return everything that is wrong with an update and its tensors; empty where it may be a member."""
    problems = [*_identity_problems(signed, terms), *_claim_problems(signed.update, terms)]
    form_problems = list(islice(_form_problems(tensors, terms.offer), _MOST_FORM_PROBLEMS))
    problems += form_problems
    if not form_problems:
        problems += _number_problems(tensors, terms)
    return problems


def _identity_problems(signed: SignedUpdate, terms: Terms) -> Iterator[Problem]:
    """Yield problems with who speaks, and of what."""
    update, offer, site = signed.update, terms.offer, terms.site
    if not is_signed(site.public_key, update.to_bytes(), signed.signature):
        yield Problem(path="signature", message="is not the site's own", hint="sign the update's canonical bytes with the enrolled key")
    if site.state is not SiteState.APPROVED:
        yield Problem(path="site", message=f"is {site.state}, not approved", value=site.pseudonym)
    pairs = {
        "version": (update.version, offer.version),
        "site": (update.site, site.pseudonym),
        "job_id": (update.job_id, offer.job_id),
        "round": (update.round, offer.round),
        "attempt": (update.attempt, offer.attempt),
        "offer": (update.offer, offer.digest),
        "start": (update.start, offer.start),
        "base_model": (update.base_model, offer.base_model),
    }
    for path, (found, expected) in pairs.items():
        if found != expected:
            yield Problem(path=path, message=f"must be {expected}, as offered", value=str(found))
    if terms.now > offer.deadline_at:
        yield Problem(path="round", message="is over", value=str(offer.round))


def _claim_problems(update: Update, terms: Terms) -> Iterator[Problem]:
    """Yield problems with what the site says of its work."""
    most = terms.site.max_examples
    if not 1 <= update.examples <= most:
        yield Problem(path="examples", message=f"must be 1 to {most}, as declared at enrolment", value=str(update.examples))
    if terms.offer.max_steps is not None and update.steps > terms.offer.max_steps:
        yield Problem(path="steps", message=f"must be {terms.offer.max_steps} or less", value=str(update.steps))
    counted = terms.offer.control.counted if terms.offer.control else None
    if update.control_from not in (None, counted):
        yield Problem(path="control_from", message=f"must be {counted or 'left out'}, as offered", value=update.control_from)


def _form_problems(tensors: Tensors, offer: Offer) -> Iterator[Problem]:
    """Yield problems with names, types and shapes."""
    for name in sorted(offer.tensors.keys() - tensors.keys()):
        yield Problem(path=name, message="is missing")
    hint = shorten(f"send just {', '.join(sorted(offer.tensors))}")
    for name in sorted(tensors.keys() - offer.tensors.keys()):
        yield Problem(path=name, message="was not asked for", hint=hint)
    for name in sorted(tensors.keys() & offer.tensors.keys()):
        array, form = tensors[name], offer.tensors[name]
        if array.shape != form.shape:
            yield Problem(path=name, message=f"must have shape {list(form.shape)}", value=str(list(array.shape)))
        if array.dtype.name not in _DTYPES[offer.wire]:
            yield Problem(path=name, message=f"must be {offer.wire}", value=array.dtype.name)


def _number_problems(tensors: Tensors, terms: Terms) -> Iterator[Problem]:
    """Yield problems with the numbers; the names and shapes are right."""
    is_sound = True
    for name, array in sorted(tensors.items()):
        largest = float(np.abs(array).max(initial=0.0))  # NaN where there is one
        if not largest <= _MAX_ENTRY:
            is_sound = False
            what = "holds a number of absurd size" if math.isfinite(largest) else "holds NaN or infinity"
            yield Problem(path=name, message=what, value=f"{largest:g}")
    if not is_sound:
        return
    rank = None if terms.offer.rank == _full_rank(terms) else terms.offer.rank
    member = Contribution(site=terms.offer.site, examples=1, load=lambda: tensors, rank=rank)
    yield from _norm_problems(length_of_update(terms.state, member), terms.offer.max_update_norm)
    yield from _control_problems(tensors, terms.offer)


def _norm_problems(length: Length, limit: float) -> Iterator[Problem]:
    """Yield the problem with an update that is too long, or of whose norm rounding leaves nothing to go by."""
    if not length.norm <= limit:
        hint = "train fewer or smaller steps"
        yield Problem(path="norm", message=f"of the update must be {limit:g} or less", value=f"{length.norm:g}", hint=hint)
    elif not length.is_told:
        message, hint = "of the update is lost in rounding: its factors cancel each other", "send factors of about the same length"
        yield Problem(path="norm", message=message, value=f"{length.norm:g} of {length.terms:g}", hint=hint)


def _control_problems(tensors: Tensors, offer: Offer) -> Iterator[Problem]:
    """Yield the problem with a change of control variates that no clipped gradients could have made."""
    length = math.hypot(*(float(np.linalg.norm(array.astype(np.float64))) for name, array in tensors.items() if is_control(name)))
    if offer.control is not None and not length <= offer.control.max_norm:
        limit, hint = offer.control.max_norm, "clip each gradient to the job's max_grad_norm"
        yield Problem(path="control", message=f"must change by {limit:g} or less", value=f"{length:g}", hint=hint)


def _full_rank(terms: Terms) -> int:
    return max(edit.pair.rank for edit in terms.state.edits.values())


def expected_forms(offer_rank: int | None, state: FederationState, parts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of what a site of ``offer_rank`` (None for the pair's) sends when it trains ``parts``."""
    forms: dict[str, tuple[int, ...]] = {}
    for group, edit in state.edits.items():
        rank = min(offer_rank or edit.pair.rank, edit.pair.rank)
        shapes = {"phi": (edit.pair.width, rank), "psi": (rank, edit.pair.width), "core": (rank, rank)}
        forms |= {f"{group}.{part}": shapes[part] for part in parts}
    return forms
