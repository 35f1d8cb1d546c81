"""A federation's site: waits outward for offers, trains on its own rows, sends signed updates, and keeps the server's receipts.

Whatever ends this process, the next one goes on from the journal: an offer that was trained is not trained again, and an update that has
its receipt is not sent again. While the server does not answer, the site waits for it, for a bounded time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from wegeft.client.site import SiteClient
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import (
    Conflict,
    FederationOver,
    InvalidInput,
    InvalidTensors,
    JobFailure,
    NotFound,
    Problem,
    UnexpectedAnswer,
    WegeftError,
    title_of,
)
from wegeft.contracts.federation import Decline, Offer, ReasonCode, SignedReceipt, SiteState, Update
from wegeft.contracts.training import JobState
from workers.base_model import BaseModel, load_base_model
from workers.site_home import SiteHome, pinned_name
from workers.site_inputs import SiteOptions, model_request, read_site_rows
from workers.site_journal import Ending, Entry, Journal
from workers.site_patience import Around, Patience
from workers.site_training import Trained, Work, planned_steps, train_round, update_of
from workers.train import Callbacks, TrainingStopped

_REPEATED_OFFER_SECONDS = 1.0
"""Pause after an offer that was answered already, which the server may name until the round closes."""


@dataclass
class SiteRunner:
    """One site at work; :meth:`run` is called once."""

    home: SiteHome
    client: SiteClient
    options: SiteOptions
    around: Around

    def run(self) -> JobState | None:
        """Answer offers until the federation is over, and return how it ended; None after one round where that was asked for.

        Raises :class:`Forbidden` once the site is revoked, the error of the last try where the server does not answer for longer than
        the site is patient, and what :func:`read_site_rows`, :func:`load_base_model` and :meth:`SiteHome.read_policy` raise. The home
        must be locked.
        """
        self._patience = Patience(self.client, self.around, self.options.patience)
        self._spec = self.home.read_record().enrolment.spec
        self._policy = self.home.read_policy()
        self._journal = Journal(self.home.journal_folder)
        self._rows = read_site_rows(self.options.data, self.home.read_record().enrolment.site.max_examples)
        self._base = self._load_base()
        self.around.say(f"{len(self._rows):,} rows; outages of the server are waited out for up to {self.options.patience}")
        try:
            self._answer_offers()
        except FederationOver as over:
            return _final_state(over)
        return None

    def _answer_offers(self) -> None:
        """Answer offers until one round is over where only that was asked for; :class:`FederationOver` ends it otherwise."""
        state = self._check_enrolment()
        if state is SiteState.PENDING:
            record = self.home.read_record().enrolment
            self.around.say(f"waiting to be approved: wgctl federation approve {record.job_id} {record.site.name}")
        for entry in self._journal.entries():
            if entry.update is not None and not entry.is_over:
                self.around.say(f"round {entry.offer.round}: going on with what was trained before")
                self._deliver(entry)
        while True:
            offer = self._patience.call(self.client.offer)
            if offer is not None and self._work_at(offer) and self.options.is_once:
                return
            if offer is None and state is SiteState.PENDING:
                state = self._check_enrolment()
                if state is not SiteState.PENDING:
                    self.around.say("approved: waiting for the next round")

    def _check_enrolment(self) -> SiteState:
        """Return the site's state; raise :class:`UnexpectedAnswer` where the server is another one than at enrolment."""
        ours, now = self.home.read_record().enrolment, self._patience.call(self.client.enrolment)
        if (now.server_key, now.job_id, now.site.pseudonym) != (ours.server_key, ours.job_id, ours.site.pseudonym):
            hint = "ask who runs it; if it was set up anew, enrol again"
            raise UnexpectedAnswer("the server's key is not the one of the enrolment", path="server_key", value=now.server_key, hint=hint)
        return now.site.state

    def _work_at(self, offer: Offer) -> bool:
        """Answer an offer; return whether this ended a round for the site."""
        entry = self._journal.open(offer)
        if entry.is_over:
            self.around.sleep(_REPEATED_OFFER_SECONDS)
            return False
        try:
            problems = self._problems_with(offer)
        except (JobFailure, InvalidInput) as error:
            self._tell_failure(entry, error)
            return True
        if problems:
            self._decline(entry, ReasonCode.DECLINED, problems)
            return True
        if entry.update is None and not self._train(entry):
            return True
        self._deliver(entry)
        return True

    def _problems_with(self, offer: Offer) -> list[Problem]:
        problems = self._policy.problems_with(offer.model_copy(update={"max_steps": self._steps_of(offer)}))
        if offer.base_model != pinned_name(self._spec):
            agreed = pinned_name(self._spec)
            problems.append(Problem(path="base_model", message="is not what the site agreed to", value=offer.base_model, hint=agreed))
        has_controls = self._spec.federation is not None and self._spec.federation.site_optimizer == "scaffold"
        if has_controls != (offer.control is not None):
            problems.append(Problem(path="control", message="is not what the site agreed to: see federation.site_optimizer of the job"))
        return problems

    def _steps_of(self, offer: Offer) -> int | None:
        """Return how many steps are asked; counted where the job names epochs and the policy a limit, None where nobody asks."""
        named = offer.max_steps or self._spec.max_steps
        if named is not None or self._policy.max_steps is None:
            return named
        return planned_steps(self._spec, offer, self._base, self._rows)

    def _tell_failure(self, entry: Entry, error: WegeftError) -> None:
        self.around.say(f"round {entry.offer.round}: {error}", is_warning=True)
        # What exactly was wrong may quote the site's own rows, so only its kind is told.
        self._decline(entry, ReasonCode.TRAINING_FAILED, [Problem(path=error.code, message=title_of(type(error)))])

    def _decline(self, entry: Entry, reason: ReasonCode, problems: Sequence[Problem]) -> None:
        offer = entry.offer
        self.around.say(f"round {offer.round}: {reason}: {'; '.join(str(problem) for problem in problems)}", is_warning=True)
        decline = Decline.model_validate(
            {
                "job_id": offer.job_id,
                "round": offer.round,
                "attempt": offer.attempt,
                "site": offer.site,
                "reason": reason,
                "problems": tuple(problems),
            }
        )
        try:
            self._patience.call(lambda: self.client.decline(decline))
        except (Conflict, NotFound):
            entry.end(Ending.LATE)  # the round is over; nobody waits for this answer
        else:
            entry.end(Ending.DECLINED, tuple(problems))

    def _train(self, entry: Entry) -> bool:
        """Train what is offered and keep it; return whether there is something to send."""
        offer = entry.offer
        self.around.say(f"round {offer.round}: training from {offer.start[:19]}…, until {offer.deadline_at.astimezone():%Y-%m-%d %H:%M:%S}")
        try:
            start = self._fetch_start(offer)
        except FederationOver:
            raise
        except (Conflict, NotFound) as error:
            self.around.say(f"round {offer.round}: it was over before training began: {error.message}", is_warning=True)
            entry.end(Ending.LATE, error.problems)
            return False
        try:
            trained, control_from = self._train_from(entry, start)
        except TrainingStopped:
            self.around.say(f"round {offer.round}: it closed before training was done", is_warning=True)
            entry.end(Ending.LATE)
            return False
        except (JobFailure, InvalidInput) as error:
            self._tell_failure(entry, error)
            return False
        if trained.is_shortened:
            self.around.say(f"round {offer.round}: the update's norm {trained.norm:.3g} was shortened to {self._max_norm(offer):.3g}")
        entry.keep_update(update_of(offer, trained, control_from), trained.tensors, trained.carried, trained.control)
        return True

    def _fetch_start(self, offer: Offer) -> bytes:
        path = self._journal.start_file(offer.start)
        if path.exists() and digest_of(content := path.read_bytes()) == offer.start:
            return content
        self._patience.call(lambda: self.client.fetch_blob(offer.start, path))
        return path.read_bytes()

    def _train_from(self, entry: Entry, start: bytes) -> tuple[Trained, str | None]:
        """Return what training gave, and the update after which the site's control variate was what it went on from."""
        control = self._read_control(entry.offer)
        callbacks = Callbacks(
            report=self.around.tell,
            save=entry.keep_checkpoint,
            should_stop=lambda: self.around.clock() > entry.offer.deadline_at,
            now=self.around.monotonic,
        )
        work = Work(
            offer=entry.offer,
            spec=self._spec,
            base=self._base,
            rows=self._rows,
            start=start,
            max_norm=self._max_norm(entry.offer),
            checkpoint=entry.read_checkpoint(),
            carried=self._read_carried(entry.offer),
            control=control or {},
        )
        control_from = entry.offer.control.counted if entry.offer.control and control is not None else None
        try:
            return train_round(work, callbacks), control_from
        except InvalidTensors:
            if work.checkpoint is None:
                raise
            self.around.say("the rows or the model have changed since the checkpoint: training from the start", is_warning=True)
            entry.drop_checkpoints()
            return train_round(replace(work, checkpoint=None), callbacks), control_from

    def _read_control(self, offer: Offer) -> Mapping[str, NDArray[Any]] | None:
        """Return the site's control variate; None where it begins at zero, which is told where it should not."""
        if offer.control is None or offer.control.counted is None:
            return None
        try:
            control = self._journal.read_control(offer)
        except InvalidTensors as error:
            control = None
            self.around.say(f"round {offer.round}: the control variate cannot be read: {error}", is_warning=True)
        if control is None:
            self.around.say(f"round {offer.round}: the control variate is lost and begins at zero again", is_warning=True)
        return control

    def _read_carried(self, offer: Offer) -> Mapping[str, NDArray[Any]]:
        try:
            return self._journal.read_carried(offer)
        except InvalidTensors as error:
            self.around.say(f"round {offer.round}: going on without what was cut off earlier updates: {error}", is_warning=True)
            return {}

    def _load_base(self) -> BaseModel:
        began = self.around.monotonic()
        base = load_base_model(model_request(self._spec, self.options.base_model))
        self.around.say(f"loaded {base.identity} in {self.around.monotonic() - began:.1f} s")
        return base

    def _max_norm(self, offer: Offer) -> float:
        return min(offer.max_update_norm, self._policy.max_update_norm or offer.max_update_norm)

    def _deliver(self, entry: Entry) -> None:
        """Send what was trained, and keep the receipt, or the reason why there is none."""
        update, number = entry.update, entry.offer.round
        assert update is not None  # noqa: S101 - the caller has looked
        try:
            receipt = self._patience.call(lambda: self._send(entry, update))
        except FederationOver:
            raise
        except (Conflict, NotFound) as error:
            self.around.say(f"round {number}: the update came too late: {error.message}", is_warning=True)
            entry.end(Ending.LATE, error.problems)
        except InvalidInput as error:
            self.around.say(f"round {number}: the update was refused: {error}", is_warning=True)
            entry.end(Ending.REFUSED, error.problems)
        else:
            entry.keep_receipt(receipt)
            what = f"{update.size:,} bytes, {update.examples:,} rows, {update.steps:,} steps"
            self.around.say(f"round {number}: update accepted ({what}), receipt for {update.digest[:19]}…")
        self._journal.prune()

    def _send(self, entry: Entry, update: Update) -> SignedReceipt:
        was_stored = entry.is_stored
        if not was_stored:
            self._store(entry)
        try:
            return self.client.submit(update)
        except InvalidInput:
            if not was_stored:
                raise
        # The server may have lost what an earlier process stored; storing again is harmless.
        self._store(entry)
        return self.client.submit(update)

    def _store(self, entry: Entry) -> None:
        self.client.store_blob(entry.read_tensors())
        entry.mark_stored()


def _final_state(over: FederationOver) -> JobState:
    try:
        return JobState(next(problem.value or "" for problem in over.problems if problem.path == "job"))
    except (StopIteration, ValueError) as error:
        raise UnexpectedAnswer("the server does not say how the federation ended", path="job") from error
