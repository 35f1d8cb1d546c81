"""Rounds in SQL, on SQLite and PostgreSQL: fenced moves, arrivals that come once, twice, late or at the same moment."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from infra.database import reading, writing
from orchestrator.ledger import rounds, sites
from orchestrator.ledger.rounds import KeptRound, RoundKey
from orchestrator.rounds import Aggregate, Arrival, Closing, decide
from tests.orchestrator.samples import add_job, at
from wegeft.contracts.errors import Conflict, IllegalTransition, NotFound, Problem, WegeftError
from wegeft.contracts.federation import Decline, Offer, ReasonCode, RoundRecord, RoundState, SignedUpdate, TensorForm, Update
from wegeft.contracts.federation_rules import FedAvg, GeneratorExact, NoDefence
from wegeft.contracts.signatures import public_key_of, sign

DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
CLOSING = Closing(min_sites=2, grace=timedelta(seconds=10), deadline=timedelta(seconds=60))


def begin(engine: Engine, count: int = 3) -> RoundKey:
    """A round that collects from so many sites since second 5."""
    key = RoundKey(job_id=add_job(engine), number=1)
    with writing(engine) as connection:
        for index in range(count):
            sites.invite(connection, key.job_id, f"site-{index}", f"t{index}", (at(0), at(99)))
            sites.enrol(connection, f"t{index}", (f"s-{index}", public_key_of(bytes([index]) * 32), 100), at(1))
        rounds.open_round(connection, key, DIGEST, at(2))
        rounds.ask(connection, key, [offer(key, f"s-{index}") for index in range(count)], at(5))
    return key


def offer(key: RoundKey, site: str) -> Offer:
    return Offer(
        job_id=key.job_id, round=1, site=site, base_model="m", start=DIGEST, rank=2, rule=GeneratorExact(),
        tensors={"q.phi": TensorForm(shape=(4, 2))}, max_update_norm=1.0, deadline_at=at(65),
    )  # fmt: skip


def update(key: RoundKey, index: int, examples: int = 5) -> SignedUpdate:
    told = Update(
        job_id=key.job_id, round=1, site=f"s-{index}", offer=DIGEST, base_model="m", start=DIGEST, tensors=OTHER, size=1, examples=examples,
        steps=1,
    )  # fmt: skip
    return SignedUpdate(update=told, signature=sign(bytes([index]) * 32, told.to_bytes()))


def send(engine: Engine, key: RoundKey, message: SignedUpdate | Decline, seconds: float, *problems: Problem) -> Arrival:
    with writing(engine) as connection:
        return rounds.receive(connection, key, message, problems, CLOSING, at(seconds))


def load(engine: Engine, key: RoundKey) -> KeptRound:
    with reading(engine) as connection:
        return rounds.load_round(connection, key, CLOSING)


def record(key: RoundKey, state: RoundState) -> RoundRecord:
    return RoundRecord(
        job_id=key.job_id, round=1, state=state, rule=GeneratorExact(), server_optimizer=FedAvg(), defence=NoDefence(), seed=1,
        start=DIGEST, result=OTHER if state is RoundState.COMMITTED else None, created_at=at(5), closed_at=at(20),
    )  # fmt: skip


def test_a_round_from_its_beginning_to_its_record(engine: Engine) -> None:
    key = begin(engine)
    assert load(engine, key).round.asked == {"s-0", "s-1", "s-2"}
    for index in (2, 0):
        send(engine, key, update(key, index), 7 + index)
    kept = load(engine, key)
    decision = decide(kept.round, kept.arrivals, at(20))
    assert isinstance(decision, Aggregate)
    with writing(engine) as connection:
        rounds.close_round(connection, key, decision.members, decision.closed_at)
    closed = load(engine, key)
    assert closed.member_digests == (update(key, 0).update.digest, update(key, 2).update.digest)
    assert [closed.updates[digest] for digest in closed.member_digests] == [update(key, 0), update(key, 2)]
    with writing(engine) as connection:
        rounds.commit_round(connection, key, record(key, RoundState.COMMITTED))
    assert load(engine, key).record == record(key, RoundState.COMMITTED)
    with reading(engine) as connection:
        assert rounds.last_round(connection, key.job_id) == (key, RoundState.COMMITTED)


def test_the_same_update_again_is_the_same_arrival_and_another_one_is_refused(engine: Engine) -> None:
    key = begin(engine)
    first = send(engine, key, update(key, 1), 7)
    assert send(engine, key, update(key, 1), 30) == first
    with pytest.raises(Conflict, match="taken before"):
        send(engine, key, update(key, 1, examples=6), 8)
    assert len(load(engine, key).arrivals) == 1


def test_a_refused_update_is_kept_with_its_problems_and_may_be_mended(engine: Engine) -> None:
    key, problem = begin(engine), Problem(path="norm", message="too long")
    assert send(engine, key, update(key, 1, examples=9), 7, problem).reason is ReasonCode.REFUSED
    assert send(engine, key, update(key, 1), 8).reason is None
    kept = load(engine, key)
    assert [arrival.problems for arrival in kept.arrivals] == [(problem,), ()]
    assert set(kept.updates) == {update(key, 1).update.digest}


def test_a_site_that_declined_is_out_of_the_round(engine: Engine) -> None:
    key = begin(engine)
    decline = Decline(job_id=key.job_id, round=1, site="s-1", reason=ReasonCode.DECLINED)
    assert send(engine, key, decline, 7).reason is ReasonCode.DECLINED
    with pytest.raises(Conflict):
        send(engine, key, update(key, 1), 8)


@pytest.mark.parametrize("seconds", [17, 18, 65, 999])
def test_what_comes_after_the_close_is_late_even_before_anyone_has_closed_it(engine: Engine, seconds: float) -> None:
    key = begin(engine)
    send(engine, key, update(key, 0), 6)
    send(engine, key, update(key, 1), 7)
    with pytest.raises(Conflict, match="the round is closed"):
        send(engine, key, update(key, 2), seconds)
    send(engine, key, update(key, 2), 16.9)


def test_strangers_are_not_heard(engine: Engine) -> None:
    key = begin(engine, 2)
    with pytest.raises(NotFound, match="not asked"):
        send(engine, key, update(key, 7), 6)
    with pytest.raises(NotFound, match="not asked"):
        send(engine, RoundKey(job_id=key.job_id, number=9), update(key, 0), 6)


def test_of_two_servers_that_close_or_commit_one_acts(engine: Engine) -> None:
    key = begin(engine, 2)
    members = [send(engine, key, update(key, index), 6) for index in range(2)]

    def attempt(act: object) -> bool:
        try:
            with writing(engine) as connection:
                act(connection)  # type: ignore[operator]
        except IllegalTransition:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        closes = list(pool.map(attempt, [lambda c: rounds.close_round(c, key, members, at(6))] * 4))
        commits = list(pool.map(attempt, [lambda c: rounds.commit_round(c, key, record(key, RoundState.COMMITTED))] * 4))
    assert (sum(closes), sum(commits)) == (1, 1)
    assert not attempt(lambda c: rounds.fail_round(c, key, RoundState.AGGREGATING, record(key, RoundState.FAILED)))
    with pytest.raises(Conflict), writing(engine) as connection:
        rounds.open_round(connection, key, DIGEST, at(9))


def test_two_updates_of_one_site_at_the_same_moment_are_one_arrival(engine: Engine) -> None:
    key = begin(engine)

    def attempt(examples: int) -> bool:
        try:
            send(engine, key, update(key, 1, examples), 7)
        except WegeftError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, range(1, 5))) == 1
    assert len(load(engine, key).arrivals) == 1


def test_a_round_that_fails_keeps_its_record(engine: Engine) -> None:
    key = begin(engine)
    with writing(engine) as connection:
        rounds.fail_round(connection, key, RoundState.COLLECTING, record(key, RoundState.FAILED))
        rounds.open_round(connection, RoundKey(job_id=key.job_id, number=1, attempt=2), DIGEST, at(70))
    assert load(engine, key).round.state is RoundState.FAILED
    with reading(engine) as connection:
        assert rounds.last_round(connection, key.job_id) == (RoundKey(job_id=key.job_id, number=1, attempt=2), RoundState.SELECTING)
        assert rounds.last_round(connection, "none") is None


def test_what_a_site_sends_in_vain_does_not_fill_the_round(engine: Engine) -> None:
    key = begin(engine)
    for examples in range(40):
        wrong = send(engine, key, update(key, 0, 1000 + examples), 6, Problem(path="examples", message="too many"))
        assert (wrong.reason, len(wrong.problems)) == (ReasonCode.REFUSED, 1)
    assert len(load(engine, key).arrivals) == 16
    send(engine, key, update(key, 1), 7)
    assert send(engine, key, update(key, 0), 8).reason is None  # it may be mended all the same
    assert len(load(engine, key).updates) == 2
