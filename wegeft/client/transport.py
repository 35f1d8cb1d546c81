"""One authenticated connection to one server: bounded answers, named errors, retries of what may pass."""

from __future__ import annotations

import ipaddress
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import httpx2
from pydantic import BaseModel, ValidationError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential, wait_random

from wegeft.contracts.errors import (
    Broken,
    ErrorBody,
    InvalidSetting,
    ServiceTimeout,
    ServiceUnreachable,
    StorageFull,
    StorageUnavailable,
    Unauthenticated,
    UnexpectedAnswer,
    WegeftError,
    error_from_body,
    shorten,
)
from wegeft.contracts.trace import HEADER, TraceContext

API_PREFIX = "/api/v1"
CONNECT_SECONDS = 5.0
MAX_ANSWER_BYTES = 64 << 20
"""Of an answer that is read at once; blobs are streamed."""

_NONCE_PATH = "nonce"
"""Where the problem is with a request that has come before."""

_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})\Z")

Answer = TypeVar("Answer", bound=BaseModel)
Result = TypeVar("Result")
Params = Mapping[str, str | int | Sequence[str]]
Sign = Callable[[str, str, bytes], Mapping[str, str]]
"""Gives the headers that sign one request: its method, its path with query as it is sent, and its body."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request to make."""

    method: str
    path: str
    """Below ``/api/v1``, or from the root where it starts with ``//``; its segments are quoted already."""
    params: Params = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Callable[[], bytes | Iterable[bytes]] | None = None
    """Makes the body, anew for each try."""
    may_lead_elsewhere: bool = False
    """Whether the answer may be had from another server that the answer names; that one is asked without the token, and once."""
    read_seconds: float | None = None
    """How long to wait for the next byte of the answer; None is the transport's own."""


def json_body(body: BaseModel) -> Callable[[], bytes]:
    """Return a maker of ``body`` as JSON."""
    content = body.model_dump_json().encode()
    return lambda: content


def check_server(server: str) -> httpx2.URL:
    """Return the base URL of a server; raise :class:`InvalidSetting` where it is none, without showing a password in it."""
    try:
        url = httpx2.URL(server)
    except (httpx2.InvalidURL, TypeError):
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not _is_address(url) or url.userinfo or url.query or url.fragment:
        shown = server if "@" not in server else None
        raise InvalidSetting("not the URL of a server", path="server", value=shown, hint="for example http://127.0.0.1:8571")
    return url


def _is_address(url: httpx2.URL) -> bool:
    host = url.raw_host.decode().strip("[]")
    is_host = bool(_HOST_NAME.match(host)) or (":" in host and _is_ip(host))
    return is_host and (url.port is None or 0 < url.port < 1 << 16)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _checked_address(address: str, server: str) -> httpx2.URL:
    try:
        url = httpx2.URL(address)
    except (httpx2.InvalidURL, TypeError):
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not _is_address(url) or url.userinfo:
        raise UnexpectedAnswer(f"{server} leads to what is no address", path="Location")
    if server.startswith("https:") and url.scheme != "https":
        raise UnexpectedAnswer(f"{server} leads from https to an address that is not encrypted", path="Location", value=url.host)
    return url


def _check_token(token: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidSetting("the token is empty or has characters that no token has", path="token")
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return _is_ip(host) and ipaddress.ip_address(host).is_loopback


class Transport:
    """Connections to one server with one token, or with requests that are signed one by one; safe to use from several threads.

    All its requests are of one trace, which the server's log names.
    """

    def __init__(
        self, server: str, token: str | None, *, timeout_seconds: float, patience_seconds: float, sign: Sign | None = None
    ) -> None:
        url = check_server(server)
        self.server = str(url).rstrip("/")
        self.patience_seconds = patience_seconds
        self._timeout_seconds = timeout_seconds
        self._sign = sign
        self._trace_id = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._others: dict[bool, httpx2.Client] = {}
        """By whether they stay on this machine."""
        self._http = httpx2.Client(
            base_url=url,
            headers={
                **({"Authorization": f"Bearer {_check_token(token)}"} if token is not None else {}),
                "Accept": "application/json, application/problem+json",
                "Accept-Encoding": "identity",  # so that bytes are counted and hashed as they are
            },
            timeout=self._timeout(None),
            # A redirect would carry the token to wherever the answer says; a proxy has no business between two local processes.
            follow_redirects=False,
            trust_env=not _is_loopback(url.host),
        )

    def _timeout(self, read_seconds: float | None) -> httpx2.Timeout:
        seconds = self._timeout_seconds
        return httpx2.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds), read=read_seconds or seconds)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        for http in self._others.values():
            http.close()

    def ask(self, call: Call, answer: type[Answer], *, patience_seconds: float | None = None) -> Answer:
        """Make a call and return its answer; try again for ``patience_seconds`` where that may help."""

        def once() -> Answer:
            with self.open(call) as response:
                return _parse(self.read(response), answer)

        return self.retry(once, patience_seconds)

    def tell(self, call: Call, *, patience_seconds: float | None = None) -> None:
        """Make a call whose answer says nothing but that it went well."""

        def once() -> None:
            with self.open(call) as response:
                self.read(response)

        self.retry(once, patience_seconds)

    def retry(self, once: Callable[[], Result], patience_seconds: float | None = None) -> Result:
        """Return what ``once`` does; after an error that may pass, again and again until ``patience_seconds`` are over."""
        patience = self.patience_seconds if patience_seconds is None else patience_seconds
        tries = Retrying(
            retry=retry_if_exception(may_pass),
            stop=stop_after_delay(patience),
            wait=wait_exponential(multiplier=0.1, max=3) + wait_random(0, 0.2),
            reraise=True,
        )
        return tries(once)

    @contextmanager
    def open(self, call: Call) -> Iterator[httpx2.Response]:
        """Make a call once and give its answer, unread; raise what the server says where it refuses."""
        path = call.path[1:] if call.path.startswith("//") else API_PREFIX + call.path
        with self._named_errors():
            content = call.content() if call.content else None
            request = self._http.build_request(
                call.method,
                path,
                params=dict(call.params) or None,
                headers={HEADER: TraceContext(self._trace_id, secrets.token_hex(8)).header(), **call.headers},
                content=content,
                timeout=self._timeout(call.read_seconds),
            )
            if self._sign is not None:
                body = content if isinstance(content, bytes) else b""
                request.headers.update(self._sign(call.method, request.url.raw_path.decode("ascii"), body))
            response = self._http.send(request, stream=True)
            if call.may_lead_elsewhere and response.has_redirect_location:
                self.read(response)  # so that the connection can be used again
                response.close()
                with self.elsewhere(response.headers["Location"], "GET", {**call.headers, "Accept-Encoding": "identity"}) as led:
                    yield led
                return
            try:
                if not response.is_success:
                    raise self._refusal(response)
                yield response
            finally:
                response.close()

    @contextmanager
    def elsewhere(self, url: str, method: str, headers: Mapping[str, str], content: bytes | None = None) -> Iterator[httpx2.Response]:
        """Ask an address that the server has given and give the answer, unread; neither token nor trace goes there.

        Raises :class:`UnexpectedAnswer` for what is no address, or one that is less safe than the server's own, and
        :class:`StorageUnavailable` where it does not answer well.
        """
        asked = _checked_address(url, self.server)
        try:
            http = self._elsewhere(asked.host)
            response = http.send(http.build_request(method, asked, headers=dict(headers), content=content), stream=True)
            try:
                if not response.is_success:
                    # Its body is the store's own, and its address is a key: neither is shown.
                    raise StorageUnavailable(f"the store at {asked.host} answers {response.status_code}", path="store")
                yield response
            finally:
                response.close()
        except httpx2.RequestError as error:
            hint = "the hub's operator sets WEGEFT_S3_PUBLIC_ENDPOINT to where clients reach the store"
            reason = f"the store at {asked.host} cannot be reached: {_reason(error)}"
            raise StorageUnavailable(reason, path="store", hint=hint) from error

    def _elsewhere(self, host: str) -> httpx2.Client:
        """Return connections that carry nothing of ours; made when they are first needed, which takes a while."""
        is_loopback = _is_loopback(host)
        with self._lock:
            if is_loopback not in self._others:
                made = httpx2.Client(timeout=self._timeout(None), follow_redirects=False, trust_env=not is_loopback)
                self._others[is_loopback] = made
            return self._others[is_loopback]

    def read(self, response: httpx2.Response) -> bytes:
        """Return the whole body of an answer; raise :class:`UnexpectedAnswer` where it has no end."""
        chunks, size = [], 0
        for chunk in response.iter_bytes():
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise UnexpectedAnswer(f"{self.server} answers without an end", path="server")
        return b"".join(chunks)

    def _refusal(self, response: httpx2.Response) -> WegeftError:
        status = response.status_code
        content = self.read(response)
        if response.has_redirect_location:
            return UnexpectedAnswer(f"{self.server} redirects elsewhere", path="server", hint="give the address that it redirects to")
        if response.request.method == "HEAD":
            # It never has a body, so the status is all there is.
            return error_from_body(ErrorBody(code="", title="", detail=f"{self.server} answers {status}", status=status))
        try:
            body = ErrorBody.model_validate_json(content)
        except ValidationError:
            return self._foreign_refusal(status, content)
        error = error_from_body(body)
        if status == 500 and body.request_id:
            return type(error)(f"{body.detail} ({body.request_id})")
        return error

    def _foreign_refusal(self, status: int, content: bytes) -> WegeftError:
        # Not one of our services, or a proxy in front of one.
        if status == 429 or status in (502, 503, 504):
            return ServiceUnreachable(f"{self.server} answers {status}", path="server")
        text = shorten(content[:200].decode(errors="replace"))
        return UnexpectedAnswer(f"{self.server} answers {status}, but not as a WeGeFT hub would", path="server", value=text or None)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise ServiceUnreachable(f"{self.server} cannot be reached: {_reason(error)}", path="server") from error
        except httpx2.TimeoutException as error:
            raise ServiceTimeout(f"{self.server} did not answer in time", path="server") from error
        except httpx2.RemoteProtocolError as error:
            if _is_cut(error):
                raise ServiceUnreachable(f"{self.server} closed the connection", path="server") from error
            raise UnexpectedAnswer(f"{self.server} does not speak HTTP: {_reason(error)}", path="server") from error
        except (httpx2.DecodingError, httpx2.LocalProtocolError) as error:
            raise UnexpectedAnswer(f"{self.server} cannot be understood: {_reason(error)}", path="server") from error
        except httpx2.RequestError as error:
            raise ServiceUnreachable(
                f"{self.server} cannot be reached: {_reason(error)}", path="server", hint="is it running? `wgctl up` starts one here"
            ) from error


def _reason(error: Exception) -> str:
    return shorten(str(error) or type(error).__name__)


def _is_cut(error: httpx2.RemoteProtocolError) -> bool:
    text = str(error).lower()
    return "disconnected" in text or "closed connection" in text


def may_pass(error: BaseException) -> bool:
    """Return whether the same call may succeed by itself a moment later."""
    # The bare WegeftError is the server's own 500.
    if type(error) is WegeftError or _is_repetition(error):
        return True
    return isinstance(error, Broken) and error.is_retryable and not isinstance(error, StorageFull)


def _is_repetition(error: BaseException) -> bool:
    """Return whether something between us and the server has sent one signed request twice; the next try is signed anew."""
    return isinstance(error, Unauthenticated) and any(problem.path == _NONCE_PATH for problem in error.problems)


def _parse(content: bytes, answer: type[Answer]) -> Answer:
    try:
        return answer.model_validate_json(content)
    except ValidationError as error:
        shown = shorten(content[:200].decode(errors="replace"))
        raise UnexpectedAnswer("the answer is not one of this protocol", path="server", value=shown) from error
