"""Logs: structured, as JSON lines or for a person's eyes, and never with a secret in them."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["json", "console"]

REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"(?:^|[_\-. ])(?:token|secret|password|passwd|authorization|credentials?|cookie|(?:api|access|secret|private)[_-]?key)$", re.IGNORECASE
)
_SECRET_TEXT = re.compile(
    r"wgt_[0-9a-f]{12}_[0-9a-f]+"  # our tokens
    r"|wga_[0-9a-f]+"
    r"|(?<=bearer )[^\s\"',;]{8,}"
    r"|(?<=basic )[A-Za-z0-9+/=]{8,}"
    r"|(?<=hf_)[A-Za-z0-9]{16,}"  # Hugging Face tokens
    r"|(?<=x-amz-signature=)[0-9a-f]+",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)")
_MAX_DEPTH = 8
_CHATTY = ("httpx2", "httpcore2", "alembic", "urllib3", "uvicorn.access")
"""Libraries whose every step is news to nobody."""


def configure_logging(log_format: LogFormat, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send every log of this process, ours and the libraries', to ``stream`` (standard error by default), secrets removed."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(_formatter(log_format, shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes records; of one that cannot be written it tells no more than why, for what is in it has its secrets yet."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Say that a record is missing."""
        kind = sys.exc_info()[0]
        with suppress(OSError, ValueError, AttributeError):  # there may be nowhere left to say it
            sys.stderr.write(f"a record of the log {record.name} could not be written: {kind.__name__ if kind else 'unknown'}\n")


def _formatter(log_format: LogFormat, shared: list[Processor]) -> logging.Formatter:
    renderer: Processor = (
        structlog.processors.JSONRenderer(default=repr)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    )
    # Here alone, where every record comes by, ours and the libraries', with its arguments and its traceback in it.
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, redact, renderer],
    )


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace what is named like a secret, or looks like one of ours, anywhere in ``event``."""
    return {key: _clean(key, value, 0) for key, value in event.items()}


def redact_text(text: str) -> str:
    """Return ``text`` without what looks like a token, or like the password in a URL."""
    found = _SECRET_TEXT.sub(REDACTED, text)
    return _URL_PASSWORD.sub(rf"\1{REDACTED}", found) if "://" in found else found


def _clean(key: object, value: Any, depth: int) -> Any:
    if isinstance(key, str) and _SECRET_KEY.search(key) and value is not None:
        return REDACTED
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if depth >= _MAX_DEPTH:
        return REDACTED
    if isinstance(value, Mapping):
        return {redact_text(str(name)): _clean(name, inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(None, inner, depth + 1) for inner in value]
    return redact_text(value.decode(errors="replace") if isinstance(value, bytes) else repr(value))
