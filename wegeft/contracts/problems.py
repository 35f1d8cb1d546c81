"""What is told of an error: each problem with its place, and the body that goes over the wire."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

_VALUE_LIMIT = 120


def shorten(value: object, limit: int = _VALUE_LIMIT) -> str:
    """Return a one-line rendering of ``value`` of at most ``limit`` characters, for a message."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Problem(BaseModel):
    """One thing that is wrong: where, what was there, and what would be right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = ""
    """Where, as a dotted path: ``datasets[0].path``, ``row 17``, ``q_proj.wegeft_phi``."""
    message: str
    value: str | None = None
    """The offending value, shortened; never a secret."""
    hint: str | None = None
    """What would be right, or what to do."""
    line: int | None = None
    """1-based line in the file that the user wrote."""
    column: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        path = f"{self.path}: " if self.path else ""
        value = f" (got {self.value})" if self.value is not None else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{where}{path}{self.message}{value}{hint}"


class ErrorBody(BaseModel):
    """An error on the wire and in the ledger: RFC 9457 members plus ours."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    title: str
    detail: str
    status: int
    problems: tuple[Problem, ...] = ()
    request_id: str | None = None


class WegeftError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_status: ClassVar[int] = 1
    is_retryable: ClassVar[bool] = False
    """Whether the same call may succeed later without a change by the user."""

    def __init__(
        self,
        message: str | None = None,
        *,
        path: str = "",
        value: object = None,
        hint: str | None = None,
        problems: tuple[Problem, ...] | list[Problem] = (),
    ) -> None:
        self.message = message or title_of(type(self))
        if problems:
            self.problems = tuple(problems)
        else:
            shown = None if value is None else shorten(value)
            self.problems = (Problem(path=path, message=self.message, value=shown, hint=hint),)
        super().__init__(self.message)

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self.problems)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.problems)

    def body(self, request_id: str | None = None) -> ErrorBody:
        """Return the error as it goes over the wire."""
        return ErrorBody(
            code=self.code,
            title=title_of(type(self)),
            detail=self.message,
            status=self.http_status,
            problems=self.problems,
            request_id=request_id,
        )


def _rebuild(kind: type[WegeftError], message: str, problems: tuple[Problem, ...]) -> WegeftError:
    return kind(message, problems=problems)


def title_of(kind: type[WegeftError]) -> str:
    """Return the first line of the class's docstring without its full stop."""
    return (kind.__doc__ or kind.__name__).strip().splitlines()[0].rstrip(".")
