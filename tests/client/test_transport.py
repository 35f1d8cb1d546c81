"""The client against peers that cut, stall, redirect or speak nonsense: each has its name, and nothing is half done."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.raw import Answer, answering, http
from wegeft.client import AttemptClient, Client
from wegeft.client.transport import MAX_ANSWER_BYTES
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import (
    Broken,
    DigestMismatch,
    ErrorBody,
    InvalidRequest,
    JobNotFound,
    NotFound,
    ServiceTimeout,
    ServiceUnreachable,
    StaleLease,
    StorageFull,
    UnexpectedAnswer,
    WegeftError,
)
from wegeft.contracts.placement import AttemptOrder
from wegeft.contracts.trace import parse_trace
from wegeft.contracts.training import EventBatch, EventPage, EventRecord, HeartbeatReply, JobState, Message

WHOAMI = http(200, b'{"name": "ada", "role": "read"}', "Content-Type: application/json")
TOKEN = "wgt_0123456789ab_" + "5ec2e7" * 10 + "abcd"


def client_of(url: str, patience_seconds: float = 0) -> Client:
    """A client that is not patient."""
    return Client(url, TOKEN, timeout_seconds=1, patience_seconds=patience_seconds)


def fails_as(answer: Answer, kind: type[WegeftError], match: str = "") -> WegeftError:
    """Ask a server that answers so; the error must be exactly of this kind."""
    with answering(answer) as (url, _), client_of(url) as client, pytest.raises(WegeftError, match=match) as caught:
        client.whoami()
    assert type(caught.value) is kind, repr(caught.value)
    assert TOKEN not in str(caught.value) + repr(caught.value.problems)
    return caught.value


def problem(kind: type[WegeftError]) -> bytes:
    """A refusal as our services tell it."""
    body = kind("what happened", path="where").body("r1")
    return http(body.status, body.model_dump_json().encode(), "Content-Type: application/problem+json")


def test_requests_of_one_client_are_of_one_trace() -> None:
    with answering(WHOAMI) as (url, requests):
        for _ in range(2):
            with client_of(url) as client:
                client.whoami()
                client.whoami()
    headers = [line.split(b" ", 1)[1] for request in requests for line in request.split(b"\r\n") if line.startswith(b"traceparent:")]
    contexts = [parse_trace(header.decode()) for header in headers]
    traces = [context.trace_id for context in contexts if context is not None]
    assert len(traces) == 4
    assert traces[0] == traces[1] != traces[2] == traces[3]
    assert len(set(headers)) == 4


def hang(connection: socket.socket) -> None:
    """Say nothing for longer than anybody waits."""
    time.sleep(3)


def reset(connection: socket.socket) -> None:
    """Cut the connection the hard way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.parametrize(
    ("answer", "kind", "match"),
    [
        (b"", ServiceUnreachable, "closed the connection"),
        (reset, ServiceUnreachable, "cannot be reached|closed the connection"),
        (hang, ServiceTimeout, "did not answer in time"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", UnexpectedAnswer, "does not speak HTTP"),
        (b"\x00\xff" * 500, UnexpectedAnswer, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", UnexpectedAnswer, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Len", ServiceUnreachable, "closed the connection"),
        (http(200, b'{"name"', length=100), ServiceUnreachable, "closed the connection"),
        (http(200, b"hello"), UnexpectedAnswer, "not one of this protocol"),
        (http(200, b""), UnexpectedAnswer, "not one of this protocol"),
        (http(200, b"<html>Welcome to nginx"), UnexpectedAnswer, "not one of this protocol"),
        (http(200, b'{"name": "ada", "role": "king"}'), UnexpectedAnswer, "not one of this protocol"),
        (http(200, b"[]"), UnexpectedAnswer, "not one of this protocol"),
        (http(200, b"this is not gzip", "Content-Encoding: gzip"), UnexpectedAnswer, "cannot be understood"),
        (http(404, b"<html>not here"), UnexpectedAnswer, "answers 404, but not as a WeGeFT hub would"),
        (http(401, b"{}"), UnexpectedAnswer, "answers 401"),
        (http(302, b"", "Location: https://elsewhere/?x=1"), UnexpectedAnswer, "redirects elsewhere"),
        (http(301, b""), UnexpectedAnswer, "answers 301"),
        (http(429, b"slow down"), ServiceUnreachable, "answers 429"),
        (http(502, b"<html>Bad gateway"), ServiceUnreachable, "answers 502"),
        (http(503, b""), ServiceUnreachable, "answers 503"),
        (http(500, b"oops"), UnexpectedAnswer, "answers 500"),
        (http(501, json.dumps({"code": 5}).encode()), UnexpectedAnswer, "answers 501"),
        (problem(JobNotFound), JobNotFound, "what happened"),
        (problem(StaleLease), StaleLease, "what happened"),
        (problem(StorageFull), StorageFull, "what happened"),
        (problem(WegeftError), WegeftError, r"what happened \(r1\)"),
    ],
)
def test_every_way_to_go_wrong_has_its_name(answer: Answer, kind: type[WegeftError], match: str) -> None:
    """And no traceback of a library."""
    fails_as(answer, kind, match)


def test_an_unknown_code_is_known_by_its_status() -> None:
    """A newer server may name what this client does not know."""
    body = ErrorBody(code="job_on_fire", title="t", detail="the job is on fire", status=404)
    error = fails_as(http(404, body.model_dump_json().encode()), NotFound, "on fire")
    assert isinstance(error, NotFound)


def test_an_answer_without_an_end_is_given_up() -> None:
    """Memory does not grow with what a peer likes to send."""

    def pour(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        for _ in range((MAX_ANSWER_BYTES >> 20) * 2):
            connection.sendall(chunk)

    fails_as(pour, UnexpectedAnswer, "without an end")


@pytest.mark.parametrize("first", [b"", http(503, b"x"), problem(Broken), problem(WegeftError), http(200, b"{", length=50), reset])
def test_what_may_pass_is_tried_again(first: Answer) -> None:
    """Within the patience; the second answer counts."""
    with answering(first, first, WHOAMI) as (url, requests), client_of(url, patience_seconds=10) as client:
        assert client.whoami().name == "ada"
        assert len(requests) == 3


@pytest.mark.parametrize("first", [problem(InvalidRequest), problem(StaleLease), problem(StorageFull), http(200, b"x"), http(404, b"x")])
def test_what_will_not_pass_is_not_tried_again(first: Answer) -> None:
    """The first answer counts."""
    with answering(first, WHOAMI) as (url, requests), client_of(url, patience_seconds=10) as client:
        with pytest.raises(WegeftError):
            client.whoami()
        assert len(requests) == 1


def test_patience_ends() -> None:
    """With the last error."""
    with answering(http(503, b"x")) as (url, requests), client_of(url, patience_seconds=0.6) as client:
        started = time.monotonic()
        with pytest.raises(ServiceUnreachable):
            client.whoami()
        assert 0.3 < time.monotonic() - started < 5
        assert len(requests) > 2


def test_a_retried_submission_has_one_key() -> None:
    """So that the server knows it again."""
    from tests.orchestrator.samples import make_spec

    answers = (http(503, b"x"), http(503, b"x"), problem(InvalidRequest))
    with answering(*answers) as (url, requests), client_of(url, patience_seconds=10) as client, pytest.raises(InvalidRequest):
        client.submit(make_spec())
    keys = {line for request in requests for line in request.lower().split(b"\r\n") if line.startswith(b"idempotency-key")}
    assert (len(requests), len(keys)) == (3, 1)


def test_a_heartbeat_is_tried_once() -> None:
    """The next one is worth more."""
    order = AttemptOrder(server="http://x", job_id="job-x", attempt=1, token="t")
    reply = http(200, HeartbeatReply(should_stop=False).model_dump_json().encode())
    with answering(http(503, b"x"), reply) as (url, requests), AttemptClient(order.model_copy(update={"server": url})) as worker:
        with pytest.raises(ServiceUnreachable):
            worker.heartbeat(1)
        assert len(requests) == 1


def test_the_token_goes_only_where_it_was_meant_to() -> None:
    """A redirect is not followed."""
    with answering(WHOAMI) as (elsewhere, stolen):
        with answering(http(307, b"", f"Location: {elsewhere}/api/v1/whoami")) as (url, requests), client_of(url) as client:
            with pytest.raises(UnexpectedAnswer, match="redirects"):
                client.whoami()
            assert TOKEN.encode() in requests[0]
        assert stolen == []


def page(state: JobState, *sequences: int) -> bytes:
    """A page of a log."""
    from tests.orchestrator.samples import NOW

    records = tuple(EventRecord(sequence=n, attempt=1, at=NOW, event=Message(text=str(n))) for n in sequences)
    return http(200, EventPage(records=records, state=state).model_dump_json().encode())


def test_following_survives_whatever_happens_between_two_events() -> None:
    """Cuts, refusals and halves: every event once, in order."""
    half = page(JobState.RUNNING, 3, 4)[:-20]
    answers = [page(JobState.RUNNING, 1, 2), b"", half, http(503, b"x"), page(JobState.RUNNING, 3, 4), reset, page(JobState.FAILED, 5)]
    with answering(*answers, page(JobState.FAILED)) as (url, requests), client_of(url) as client:
        assert [record.sequence for record in client.follow("job-x")] == [1, 2, 3, 4, 5]
    asked = [request.partition(b"after=")[2].partition(b"&")[0] for request in requests]
    assert asked == [b"0", b"2", b"2", b"2", b"2", b"4", b"4", b"5"]


def test_a_log_that_goes_in_circles_is_no_log() -> None:
    """Otherwise a broken server would be followed for ever."""
    with answering(page(JobState.RUNNING, 1, 2)) as (url, _), client_of(url) as client:
        follower: Iterator[EventRecord] = client.follow("job-x")
        assert [next(follower).sequence, next(follower).sequence] == [1, 2]
        with pytest.raises(UnexpectedAnswer, match="do not grow"):
            next(follower)


def worker_of(url: str, patience_seconds: float = 0) -> AttemptClient:
    """A worker that is not patient."""
    order = AttemptOrder(server=url, job_id="job-x", attempt=1, token="t")
    return AttemptClient(order, timeout_seconds=1, patience_seconds=patience_seconds)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (http(200, b"wrong bytes"), DigestMismatch),
        (http(200, b"right", length=50), ServiceUnreachable),
        (http(200, b""), DigestMismatch),
        (problem(StaleLease), StaleLease),
        (hang, ServiceTimeout),
    ],
)
def test_a_blob_comes_whole_or_not_at_all(answer: Answer, kind: type[WegeftError], tmp_path: Path) -> None:
    """No file, and no half of one, is left."""
    with answering(answer) as (url, _), worker_of(url) as worker, pytest.raises(kind):
        worker.get_blob(digest_of(b"right bytes"), tmp_path / "blob")
    assert list(tmp_path.iterdir()) == []


def test_a_blob_that_was_cut_is_fetched_again(tmp_path: Path) -> None:
    """From the start."""
    whole = http(200, b"right bytes")
    with answering(whole[:-4], b"", whole) as (url, _), worker_of(url, patience_seconds=10) as worker:
        assert worker.get_blob(digest_of(b"right bytes"), tmp_path / "blob") == 11
    assert (tmp_path / "blob").read_bytes() == b"right bytes"


def test_a_blob_that_was_cut_is_sent_again() -> None:
    """From the start, too."""
    answers = [reset, http(503, b"x"), http(201, b"{}")]
    with answering(*answers) as (url, requests), worker_of(url, patience_seconds=10) as worker:
        assert worker.put_blob(b"x" * 100_000).size == 100_000
    assert [request.partition(b" ")[0] for request in requests] == [b"PUT", b"PUT", b"PUT"]


def test_a_full_disk_keeps_nothing(tmp_path: Path) -> None:
    """Told by name; a device that is always full stands in for the disk."""
    from wegeft.client.blobs import local_errors

    with pytest.raises(StorageFull, match="no room left"), local_errors(tmp_path), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")


def test_events_are_refused_by_the_worker_itself_where_json_has_no_word_for_them() -> None:
    """A NaN would come out as null at the other end."""
    from pydantic import ValidationError

    from tests.orchestrator.samples import progress

    with pytest.raises(ValidationError):
        progress(1, float("nan"))
    assert EventBatch(first_number=0, events=(progress(1, 0.5),)).events
