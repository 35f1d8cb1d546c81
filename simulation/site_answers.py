"""What simulated sites answer: honest ones what they trained, hostile ones what their attack makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simulation.attacks import UNTRAINED, Attack, Sight, forge, garble, poison
from simulation.chance import private_key_of, throw
from simulation.label_flip import flip_answers
from simulation.scenario import Scenario
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.federation import Offer, SignedUpdate, Update
from wegeft.contracts.signatures import sign
from wegeft.contracts.wire import read_update, write_update
from workers.crew import Crew, Done, ignore
from workers.rows import AnyRow
from workers.simulated_site import AnyOrder, AnyResult, Failed, TrainOrder, Workplace
from workers.site_training import Moved, Trained

if TYPE_CHECKING:
    from simulation.server import Standing


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """An update as it reaches the service."""

    signed: SignedUpdate
    content: bytes
    carried: Moved
    """What the wire cut off it, for the site's next one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Gets answers from sites, whose work the crew does."""

    scenario: Scenario
    place: Workplace
    crew: Crew[AnyOrder, AnyResult]
    done: Done = ignore

    def collect(
        self, offers: Mapping[str, Offer], starts: Mapping[str, bytes], standing: Standing, hostile: Sequence[str]
    ) -> Iterator[tuple[str, Answer | Failed]]:
        """Yield what each site that was asked and is there sends, as soon as it is there; hostile ones come last."""
        attack = self.scenario.hostility.attack if self.scenario.hostility else None
        training = [site for site in sorted(offers) if site not in hostile or attack not in UNTRAINED]
        orders = [
            TrainOrder(
                site=site,
                offer=offers[site],
                start=starts[offers[site].start],
                carried=standing.carried.get(site, {}),
                rows=self._flipped(site) if attack is Attack.LABEL_FLIP and site in hostile else None,
            )
            for site in training
        ]
        honest: dict[str, Answer] = {}
        theirs: dict[str, AnyResult] = {}
        for count, (index, result) in enumerate(self.crew.each(orders), start=1):
            self.done(count)
            site = training[index]
            if site in hostile:
                theirs[site] = result
                continue
            answer = self._honest(offers[site], result)
            if isinstance(answer, Answer) and attack is not None:
                honest[site] = answer
            yield site, answer
        if attack is not None:
            present = [site for site in sorted(offers) if site in hostile]
            moved = [_moved(offers[site], honest[site]) for site in sorted(honest)]
            plot = _Plot(attack=attack, standing=standing, honest=moved, hostile=len(present), leader=hostile[0])
            yield from ((site, self._hostile(offers[site], theirs.get(site), plot)) for site in present)

    def _flipped(self, site: str) -> list[AnyRow]:
        return flip_answers(self.place.rows, self.place.parts[site])

    def _honest(self, offer: Offer, result: AnyResult) -> Answer | Failed:
        if isinstance(result, Failed):
            return result
        assert isinstance(result, Trained)  # noqa: S101 - a training order gives nothing else
        update = self._describe(offer, result.tensors, result)
        return Answer(signed=self._sign(update, offer.site), content=result.tensors, carried=result.carried)

    def _hostile(self, offer: Offer, result: AnyResult | None, plot: _Plot) -> Answer | Failed:
        if isinstance(result, Failed):
            return result
        trained = result if isinstance(result, Trained) else None
        own = read_update(trained.tensors, offer.wire) if trained else {name: np.zeros(form.shape) for name, form in offer.tensors.items()}
        full = max(edit.pair.rank for edit in plot.standing.state.edits.values())
        sight = Sight(
            state=plot.standing.state,
            own={name: array.astype(np.float64) for name, array in own.items()},
            honest=plot.honest,
            hostile=plot.hostile,
            max_norm=offer.max_update_norm,
            seed=int(2**31 * throw(self.scenario.seed, "attack", offer.round, offer.site)),
            rank=None if offer.rank == full else offer.rank,
        )
        content = garble(plot.attack, write_update(poison(plot.attack, sight), offer.wire))
        update = forge(plot.attack, self._describe(offer, content, trained))
        signer = plot.leader if plot.attack is Attack.SYBIL else offer.site
        return Answer(signed=self._sign(update, signer), content=content, carried={})

    def _describe(self, offer: Offer, content: bytes, trained: Trained | None) -> Update:
        return Update(
            job_id=offer.job_id,
            round=offer.round,
            attempt=offer.attempt,
            site=offer.site,
            offer=offer.digest,
            base_model=offer.base_model,
            start=offer.start,
            tensors=digest_of(content),
            size=len(content),
            examples=trained.examples if trained else len(self.place.parts[offer.site]),
            steps=trained.steps if trained else 1,
            # Clocks differ from run to run, and records must not.
            metrics={name: value for name, value in trained.metrics.items() if name != "train_seconds"} if trained else {},
        )

    def _sign(self, update: Update, signer: str) -> SignedUpdate:
        return SignedUpdate(update=update, signature=sign(private_key_of(self.scenario, signer), update.to_bytes()))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plot:
    """What the hostile sites of a round have in common."""

    attack: Attack
    standing: Standing
    honest: Sequence[Moved]
    hostile: int
    leader: str


def _moved(offer: Offer, answer: Answer) -> Moved:
    return {name: array.astype(np.float64) for name, array in read_update(answer.content, offer.wire).items()}
