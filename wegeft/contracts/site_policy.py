"""What a site of a federation lets itself be asked, and what an offer asks beyond that."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wegeft.contracts.errors import Problem
from wegeft.contracts.federation import Message, Offer
from wegeft.contracts.wire import bytes_on


class SitePolicy(Message):
    """What a site lets itself be asked; its own file, which the server never sees."""

    allowed_base_models: tuple[str, ...] = ("*",)
    """Base models it will train, exactly as pinned, or everything before a closing ``*``."""
    allowed_rules: tuple[str, ...] = ("*",)
    """Aggregation rules it will answer, by name; ``*`` is any."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps in one round at most, counted before training where the job names epochs; null is without limit."""
    max_rank: Annotated[int, Field(ge=1)] | None = None
    """Rank at most."""
    max_update_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of an update that it will send; longer ones are shortened to it before they leave."""
    max_upload_bytes: Annotated[int, Field(ge=1)] | None = None
    """Bytes of numbers that it will send in one round at most, as they travel."""

    def problems_with(self, offer: Offer) -> list[Problem]:
        """Return everything in ``offer`` that this policy forbids; empty where the site may go ahead."""
        problems = []
        if not any(_matches(pattern, offer.base_model) for pattern in self.allowed_base_models):
            problems.append(Problem(path="base_model", message="is not among allowed_base_models", value=offer.base_model))
        if not any(_matches(pattern, offer.rule.name) for pattern in self.allowed_rules):
            problems.append(Problem(path="rule", message="is not among allowed_rules", value=offer.rule.name))
        size = sum(bytes_on(offer.wire, form.shape) for form in offer.tensors.values())
        for path, asked, limit in (
            ("max_steps", offer.max_steps, self.max_steps),
            ("rank", offer.rank, self.max_rank),
            ("max_upload_bytes", size, self.max_upload_bytes),
        ):
            if limit is not None and (asked is None or asked > limit):
                problems.append(Problem(path=path, message=f"must be {limit} or less", value="no limit" if asked is None else str(asked)))
        return problems


def _matches(pattern: str, text: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern
