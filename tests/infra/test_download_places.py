"""How many files one account may be reading at once: its next ones wait, others do not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx2
import pytest
from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from infra.bodies import sends_files
from infra.http import create_app
from infra.principals import Principal, Role
from tests.hub.serving import listening
from wegeft.contracts.errors import StorageUnavailable

MOST = 2


class Files:
    """An application that sends as much of a file as it is let."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        router = APIRouter()
        sending = Depends(sends_files(self.reader, MOST))

        @router.get("/file", dependencies=[sending])
        def get_file() -> StreamingResponse:
            return StreamingResponse(self.content())

        @router.get("/broken", dependencies=[sending])
        def get_broken() -> StreamingResponse:
            raise StorageUnavailable("on purpose")

        self.app = create_app([router], title="t", version="1")

    def reader(self, request: Request) -> Principal:
        return Principal(name=request.headers["account"], role=Role.READ, token_id="")

    def content(self) -> Iterator[bytes]:
        yield b"begins"
        self.may_end.wait(30)
        yield b"ends"


@pytest.fixture
def files() -> Iterator[tuple[Files, str]]:
    files = Files()
    with listening(files.app) as url:
        yield files, url
        files.may_end.set()


def read(url: str, account: str = "ada", path: str = "/file") -> int:
    return httpx2.get(url + path, headers={"account": account}, timeout=30, trust_env=False).status_code


def is_done(answer: Future[int], seconds: float = 0.3) -> bool:
    try:
        return answer.result(seconds) == 200
    except TimeoutError:
        return False


def test_the_next_one_waits_and_others_do_not(files: tuple[Files, str]) -> None:
    made, url = files
    with ThreadPoolExecutor(8) as pool, httpx2.Client(trust_env=False, timeout=30) as http:
        first = [pool.submit(read, url) for _ in range(MOST)]
        third = pool.submit(read, url)
        with http.stream("GET", f"{url}/file", headers={"account": "bob"}) as answer:
            assert next(answer.iter_bytes()) == b"begins", "another account has places of its own"
            assert not is_done(third)
            made.may_end.set()
        assert all(one.result(30) == 200 for one in (*first, third))


@pytest.mark.parametrize("how", ["cut", "failed"])
def test_a_place_is_free_again_however_an_answer_ends(files: tuple[Files, str], how: str) -> None:
    made, url = files
    for _ in range(MOST + 1):
        if how == "failed":
            assert read(url, path="/broken") == 503
            continue
        with httpx2.stream("GET", f"{url}/file", headers={"account": "ada"}, timeout=30, trust_env=False) as answer:
            assert next(answer.iter_bytes()) == b"begins"
        made.may_end.set()  # so that what was cut is noticed
    made.may_end.set()
    assert read(url) == 200
