"""Why a service ended is read from its log, whoever else wrote there."""

import pytest

from cli.embedded import last_error
from wegeft.contracts.errors import AlreadyRunning, InvalidSetting, WegeftError

RUNNING = AlreadyRunning("a service is running in this home")
SETTING = InvalidSetting("WEGEFT_PORT is no port")


def line_of(error: WegeftError) -> bytes:
    return error.body().model_dump_json(exclude_none=True).encode()


def log_of(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


@pytest.mark.parametrize("after", [(), (b"[info] serving",), (b'{"event": "request"}', b"", b"\xff\xfe"), (line_of(SETTING),)])
def test_the_last_error_of_the_status_counts_whatever_follows(after: tuple[bytes, ...]) -> None:
    older = AlreadyRunning("the one before")
    found = last_error(log_of(line_of(older), b"[info] starting", line_of(RUNNING), *after), RUNNING.exit_status)
    assert isinstance(found, AlreadyRunning)
    assert str(found) == str(RUNNING)


@pytest.mark.parametrize("log", [b"", b"\n\n", b"[info] serving\n", log_of(line_of(SETTING)), line_of(RUNNING)[:-5]])
def test_no_error_of_the_status_is_none(log: bytes) -> None:
    assert last_error(log, RUNNING.exit_status) is None
