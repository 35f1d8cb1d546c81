"""What a site checks before it takes part: everything that would stop it in a round, told now, and what would be right."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
from pydantic import BaseModel as Model
from pydantic import ConfigDict

from wegeft.client.site import SiteClient
from wegeft.contracts.errors import Forbidden, InvalidSetting, OutOfMemory, WegeftError
from wegeft.contracts.federation import SiteState
from wegeft.contracts.signatures import CLOCK_TOLERANCE
from wegeft.contracts.training import Progress
from workers.base_model import BaseModel, load_base_model
from workers.rows import AnyRow
from workers.site_home import SiteHome
from workers.site_inputs import SiteOptions, model_request, read_site_rows
from workers.site_patience import Around
from workers.site_training import dry_step

LEAST_DISK_BYTES = 256 << 20
"""For starts, updates and checkpoints of the rounds that are kept."""
LEAST_MEMORY_BYTES = 256 << 20
"""Free beside the model and one step."""


class Check(Model):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True)

    name: str
    is_ok: bool
    found: str
    """What was found, in words."""
    hint: str | None = None
    """What would be right."""


@dataclass
class Preflight:
    """The checks, in the order in which a round would meet them."""

    home: SiteHome
    client: SiteClient
    options: SiteOptions
    around: Around
    _rows: list[AnyRow] = field(default_factory=list, init=False)
    _base: BaseModel | None = field(default=None, init=False)

    def run(self) -> Iterator[Check]:
        """Yield every check as it is done; one that fails does not stop those that can be done without it."""
        checks: dict[str, Callable[[], str]] = {
            "policy": self._check_policy,
            "server": self._check_server,
            "clock": self._check_clock,
            "enrolment": self._check_enrolment,
            "disk": self._check_disk,
            "data": self._check_data,
            "base model": self._check_model,
            "one step": self._check_step,
            "memory": self._check_memory,
        }
        for name, check in checks.items():
            try:
                yield Check(name=name, is_ok=True, found=check())
            except WegeftError as error:
                hints = [problem.hint for problem in error.problems if problem.hint]
                yield Check(name=name, is_ok=False, found=str(error), hint=hints[0] if hints else None)

    def _check_policy(self) -> str:
        policy = self.home.read_policy()
        steps = "any number of" if policy.max_steps is None else f"at most {policy.max_steps:,}"
        return f"{', '.join(policy.allowed_base_models)}; rules {', '.join(policy.allowed_rules)}; {steps} steps"

    def _check_server(self) -> str:
        began = self.around.monotonic()
        self.client.clock_lead()
        return f"{self.home.read_record().server} answers in {1000 * (self.around.monotonic() - began):.0f} ms"

    def _check_clock(self) -> str:
        lead = self.client.clock_lead().total_seconds()
        limit = CLOCK_TOLERANCE.total_seconds()
        found = f"{abs(lead):.0f} s {'ahead of' if lead > 0 else 'behind'} the server's"
        if abs(lead) > limit:
            raise InvalidSetting(found, hint=f"set the clock; at most {limit:.0f} s are tolerated")
        return found

    def _check_enrolment(self) -> str:
        enrolment = self.client.enrolment()
        if enrolment.server_key != self.home.read_record().enrolment.server_key:
            raise InvalidSetting("the server's key is not the one of the enrolment", hint="ask who runs it")
        match enrolment.site.state:
            case SiteState.APPROVED:
                return f"{enrolment.site.name} of {enrolment.job_id}, approved"
            case SiteState.PENDING:
                return f"{enrolment.site.name} of {enrolment.job_id}, waiting to be approved"
            case SiteState.REVOKED:
                raise Forbidden("the site's enrolment was revoked", hint="ask who runs the federation for a new invitation")

    def _check_disk(self) -> str:
        free = shutil.disk_usage(self.home.folder).free
        if free < LEAST_DISK_BYTES:
            raise InvalidSetting(f"{_mebibytes(free)} free", hint=f"{_mebibytes(LEAST_DISK_BYTES)} at least, under {self.home.folder}")
        return f"{_mebibytes(free)} free"

    def _check_data(self) -> str:
        most = self.home.read_record().enrolment.site.max_examples
        self._rows = read_site_rows(self.options.data, most)
        return f"{len(self._rows):,} rows, of {most:,} that were declared at most"

    def _check_model(self) -> str:
        began = self.around.monotonic()
        self._base = load_base_model(model_request(self.home.read_record().enrolment.spec, self.options.base_model))
        return f"{self._base.identity}, loaded in {self.around.monotonic() - began:.1f} s"

    def _check_step(self) -> str:
        if self._base is None or not self._rows:
            raise InvalidSetting("not done: it needs the data and the base model", hint="mend those first")
        steps: list[Progress] = []
        spec = self.home.read_record().enrolment.spec
        began = self.around.monotonic()
        dry_step(spec, self._base, self._rows, lambda event: steps.append(event) if isinstance(event, Progress) else None)
        return f"loss {steps[-1].loss:.3f}, {self.around.monotonic() - began:.1f} s with preparation"

    def _check_memory(self) -> str:
        memory, own = psutil.virtual_memory().available, psutil.Process().memory_info().rss
        found = f"{_mebibytes(own)} used, {_mebibytes(memory)} left"
        if memory < LEAST_MEMORY_BYTES:
            raise OutOfMemory(found, hint=f"{_mebibytes(LEAST_MEMORY_BYTES)} at least should be left")
        return found


def failure_of(checks: list[Check]) -> WegeftError | None:
    """Return how preflight ends: None where every check is ok, and otherwise an error that names those that are not."""
    failed = [check for check in checks if not check.is_ok]
    if not failed:
        return None
    names = ", ".join(check.name for check in failed)
    return WegeftError(f"{len(failed)} of {len(checks)} checks failed: {names}")


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
