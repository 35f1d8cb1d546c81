"""Logs: a planted secret is looked for in everything that comes out."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from infra.auth import make_attempt_token
from infra.telemetry import REDACTED, configure_logging, redact, redact_text

USER_TOKEN = "wgt_0123456789ab_" + "5ec2e7" * 10 + "abcd"
ATTEMPT_TOKEN = make_attempt_token()
SECRETS = (USER_TOKEN, ATTEMPT_TOKEN, "hunter2-is-planted")


@pytest.fixture(params=["json", "console"])
def stream(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """Where the logs go; the logging of the tests themselves is put back afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    log_format: Literal["json", "console"] = request.param
    configure_logging(log_format, "DEBUG", stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def plant(log: Any) -> None:
    """Log the secrets in every way that code logs things."""
    password = SECRETS[2]
    log.info("plain", token=USER_TOKEN, lease_token=ATTEMPT_TOKEN, Password=password, authorization=f"Bearer {USER_TOKEN}")
    log.info("nested", request={"headers": [{"Authorization": password}, ("cookie", USER_TOKEN)], "deep": {"api_key": password}})
    message = " ".join(("in the message", USER_TOKEN, "and", ATTEMPT_TOKEN))
    log.info(message)
    log.warning("url", database=f"postgresql://me:{password}@db/x", s3=f"https://s3/x?X-Amz-Signature={'ab' * 32}")
    log.info("bytes", body=f"token={USER_TOKEN}".encode(), obj=Holder(USER_TOKEN), secret=Holder(password))
    log.info("keys", mapping={USER_TOKEN: 1})
    try:
        fail(f"cannot use {USER_TOKEN}")
    except ValueError:
        log.exception("failed")


def fail(message: str) -> None:
    """Fail with a message that should not have been made."""
    raise ValueError(message)


class Holder:
    """An object whose repr tells its insides."""

    def __init__(self, inside: str) -> None:
        self.inside = inside

    def __repr__(self) -> str:
        return f"Holder({self.inside})"


def test_no_secret_gets_into_a_log(stream: io.StringIO) -> None:
    """By whatever way it comes."""
    plant(structlog.get_logger("ours"))
    text = stream.getvalue()
    assert "plain" in text
    assert "ValueError" in text
    assert REDACTED in text
    for secret in (*SECRETS, "ab" * 32):
        assert secret not in text


def test_no_secret_gets_into_a_librarys_log(stream: io.StringIO) -> None:
    """Those come through the standard library, with arguments and tracebacks of their own."""
    log = logging.getLogger("a.library")
    log.warning("connecting with %s to %s", USER_TOKEN, f"postgresql://me:{SECRETS[2]}@db/x")
    try:
        fail(f"Authorization: Bearer {SECRETS[2]}")
    except ValueError:
        log.exception("failed with %r", {"token": ATTEMPT_TOKEN})
    text = stream.getvalue()
    assert "connecting with" in text
    for secret in SECRETS:
        assert secret not in text


@pytest.mark.parametrize("stream", ["json"], indirect=True)
def test_no_secret_of_a_record_that_cannot_be_written_is_told_instead(stream: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    """As where a disk is full, or a library's record is wrong: the standard library would show the record as it came."""
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if getattr(handler, "stream", None) is stream]  # without the tests' own
    logging.getLogger("a.library").warning("a number: %d", USER_TOKEN)
    stream.close()
    plant(structlog.get_logger("ours"))
    told = capsys.readouterr().err
    assert told.splitlines()[:2] == [
        "a record of the log a.library could not be written: TypeError",
        "a record of the log ours could not be written: ValueError",
    ]
    assert not [secret for secret in SECRETS if secret in told]


def test_every_line_is_json_with_its_context() -> None:
    """For machines that read it: level, logger, time, and what was bound."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        configure_logging("json", "INFO", stream)
        with structlog.contextvars.bound_contextvars(request_id="r1"):
            structlog.get_logger("ours").info("hello\nworld", number=3, tokens_per_second=12.5, obj=Holder("x"))
            logging.getLogger("theirs").warning("hi %d", 5)
            logging.getLogger("httpx2").info("news to nobody")
            structlog.get_logger("ours").debug("too quiet")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        structlog.reset_defaults()
    ours, theirs = (json.loads(line) for line in stream.getvalue().splitlines())
    assert ours["timestamp"].endswith("Z")
    del ours["timestamp"], theirs["timestamp"]
    expected = {"event": "hello\nworld", "number": 3, "tokens_per_second": 12.5, "obj": "Holder(x)"}
    assert ours == {**expected, "level": "info", "logger": "ours", "request_id": "r1"}
    assert theirs == {"event": "hi 5", "level": "warning", "logger": "theirs", "request_id": "r1"}


@pytest.mark.parametrize(
    "key", ["token", "access_token", "Token", "secret", "client_secret", "password", "authorization", "Authorization", "api_key", "api-key",
            "private_key", "cookie", "credentials", "s3_secret_key"]
)  # fmt: skip
def test_names_of_secrets(key: str) -> None:
    """Whatever the value."""
    assert redact(None, "info", {key: "anything"}) == {key: REDACTED}


@pytest.mark.parametrize("key", ["tokens", "token_id", "tokens_per_second", "tokenizer", "secretary", "key", "passwords_checked"])
def test_names_that_only_sound_like_it(key: str) -> None:
    """They stay readable."""
    assert redact(None, "info", {key: "value"}) == {key: "value"}


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_token_is_found_in_any_text(before: str, after: str) -> None:
    """Whatever stands around it."""
    assert USER_TOKEN[17:] not in redact_text(before + USER_TOKEN + after)
    assert ATTEMPT_TOKEN not in redact_text(before + ATTEMPT_TOKEN + after)


def test_an_event_that_holds_itself_is_no_trap() -> None:
    """Depth is bounded."""
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert REDACTED in str(redact(None, "info", {"loop": loop}))
