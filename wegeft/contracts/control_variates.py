"""SCAFFOLD's control variates on the wire: what an offer says of them, and what they are called in a start and in an update."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from wegeft.contracts.adapter import Digest
from wegeft.contracts.job_sections import Frozen

_CONTROL = ".control"


class ControlTerms(Frozen):
    """What a site must know to send the change of its control variate beside its update."""

    sites: Annotated[int, Field(ge=1)]
    """Approved sites when the round asked: what the server's sum of control variates is divided by."""
    max_norm: Annotated[float, Field(gt=0)]
    """Norm of the change, over all its tensors, beyond which an update is refused."""
    counted: Digest | None = None
    """The file of the site's last update whose change is in the server's sum: it goes on from after that one. None without any."""


def control_of(name: str) -> str:
    """Return what the control variate of a tensor is called."""
    return name + _CONTROL


def is_control(name: str) -> bool:
    """Return whether a tensor is a control variate, or the change of one."""
    return name.endswith(_CONTROL)


def trained_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``names`` that are trained, sorted: all but the control variates."""
    return tuple(sorted(name for name in names if not is_control(name)))
