"""The doors that take files, asked by hand: what is refused, whole and at once, and who wins a race."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from hub.folder_store import FolderStore
from hub.hf_api import commit_lines
from hub.hf_views import EMPTY_COMMIT
from tests.hub.hf_clients import sound_files
from tests.hub.serving import MAX_BLOB_BYTES, Hub, made_hub
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE

HEADER: dict[str, Any] = {"key": "header", "value": {"summary": "a commit", "description": ""}}
Lines = list[Any]


class Client:
    """Asks a hub in this process."""

    def __init__(self, hub: Hub, name: str = "demo/made") -> None:
        self.hub = hub
        self.name = name
        self._client = TestClient(hub.app, raise_server_exceptions=False)

    def ask(self, method: str, path: str, role: str = "write", **more: Any) -> httpx2.Response:
        headers = (self.hub.bearer(role) if role else {}) | more.pop("headers", {})
        answer: httpx2.Response = self._client.request(method, path, headers=headers, **more)
        return answer

    @property
    def named(self) -> dict[str, str]:
        namespace, _, name = self.name.partition("/")
        return {"name": name, "organization": namespace}

    @property
    def root(self) -> str:
        return f"/api/models/{self.name}"

    def create(self) -> Client:
        assert self.ask("POST", "/api/repos/create", json=self.named).status_code == 200
        return self

    def commit(self, lines: Lines | bytes, to: str = "main", role: str = "write") -> httpx2.Response:
        body = lines if isinstance(lines, bytes) else b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        return self.ask("POST", f"{self.root}/commit/{to}", role, content=body)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("commits")
    with made_hub(f"sqlite:///{folder / 'hub.db'}", FolderStore(folder / "blobs")) as hub:
        yield hub


@pytest.fixture
def client(hub: Hub, numbers: Iterator[int] = itertools.count()) -> Client:  # noqa: B008 - one count for all tests
    """Of an adapter of this test's own, which is empty."""
    return Client(hub, f"demo/made{next(numbers)}").create()


@pytest.fixture
def stored(database_url: str, tmp_path: Path) -> Iterator[Client]:
    """Of an empty adapter, on each database."""
    with made_hub(database_url, FolderStore(tmp_path / "blobs")) as hub:
        yield Client(hub).create()


def file(path: str, content_: bytes, **changes: Any) -> dict[str, Any]:
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(content_).decode(), "encoding": "base64"} | changes}


def known(oid: str, algo: str = "sha256") -> dict[str, Any]:
    return {"key": "lfsFile", "value": {"path": "README.md", "algo": algo, "oid": oid, "size": 1}}


def good(fill: float = 0.5, **header: Any) -> Lines:
    return [with_header(**header), *(file(path, content) for path, content in sound_files(fill).items())]


def with_header(**changes: Any) -> dict[str, Any]:
    return {"key": "header", "value": HEADER["value"] | changes}


def told(answer: httpx2.Response) -> str:
    return " | ".join(error["message"] for error in answer.json()["errors"])


def newest(client: Client) -> str:
    return str(client.ask("GET", client.root).json()["sha"])


def history(client: Client) -> int:
    return len(client.ask("GET", f"{client.root}/commits/main").json())


SOUND = sound_files()
REFUSED: dict[str, tuple[Lines | bytes, str]] = {
    "nothing": (b"", "the commit is empty"),
    "blank lines": (b"\n\n \n", "the commit is empty"),
    "no JSON": (b"header\n", "line 1: not a JSON object"),
    "a list": ([[1]], "line 1: not a JSON object"),
    "not UTF-8": (b'{"key": "\xff"}\n', "line 1: not a JSON object"),
    "one name twice": (b'{"key": "header", "key": "file"}\n', "more than once"),
    "deep": (b'{"key": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", "nested too deeply"),
    "no header": ([file("README.md", b"x")], "the header is the first line"),
    "two headers": ([HEADER, HEADER], "the header is the first line, and only the first"),
    "a header without words": ([with_header(summary=""), file("README.md", b"x")], "line 1.summary"),
    "a header with a NUL": ([with_header(summary="a\0b")], "line 1.summary"),
    "a parent that is no commit": ([with_header(parentCommit="main")], "line 1.parentCommit"),
    "a value that is a text": ([HEADER, {"key": "file", "value": "x"}], "line 2: Input should be"),
    "an unknown line": ([HEADER, {"key": "copiedFile", "value": {}}], "not a kind of line"),
    "another encoding": ([HEADER, file("README.md", b"x", encoding="utf-8")], "line 2.encoding"),
    "no content": ([HEADER, {"key": "file", "value": {"path": "README.md", "encoding": "base64"}}], "line 2.content"),
    "not base64": ([*good(), file("README.md", b"", content="é*!")], "not base64"),
    "base64 with a line break": ([*good(), file("README.md", b"", content="QUJD\nQUJD")], "not base64"),
    "base64 that ends early": ([*good(), file("README.md", b"", content="QUJDR")], "ends early"),
    "base64 that goes on": ([*good(), file("README.md", b"", content="QQ==QUJD")], "not base64"),
    "long text that is not base64": ([*good(), file("README.md", b"", content="!" * 100_000)], "not base64"),
    "long base64 that goes on": ([*good(), file("README.md", b"", content="QUI=" + "QUJD" * 50_000)], "not base64"),
    "long base64 that ends early": ([*good(), file("README.md", b"", content="QUJD" * 50_000 + "Q")], "ends early"),
    "a text without an end": (b'{"key": "header\n"}\n', "ends within a text"),
    "a file twice": ([*good(), file(CONFIG_FILE, SOUND[CONFIG_FILE])], "adapter_config.json: named more than once in one commit"),
    "a way up": ([*good(), file("../README.md", b"x")], "../README.md: not a file that this hub serves"),
    "a way up and down": ([*good(), file("a/../README.md", b"x")], "not a file that this hub serves"),
    "an absolute path": ([*good(), file("/etc/passwd", b"x")], "/etc/passwd: not a file"),
    "a backslash": ([*good(), file("..\\README.md", b"x")], "not a file that this hub serves"),
    "another case": ([*good(), file("readme.md", b"x")], "readme.md: not a file that this hub serves"),
    "a Cyrillic letter": ([*good(), file("R\u0415ADME.md", b"x")], "'R\\u0415ADME.md': not a file that this hub serves"),
    "a full-width letter": ([*good(), file("\uff32EADME.md", b"x")], "not a file that this hub serves"),
    "an invisible character": ([*good(), file("README.md\u200b", b"x")], "not a file that this hub serves"),
    "a NUL": ([*good(), file("README.md\0", b"x")], "not a file that this hub serves"),
    "a pickle by name": ([*good(), file("adapter_model.BIN", b"x")], "a pickle runs code when it is loaded"),
    "a pickle by content": ([*good()[:2], file(WEIGHTS_FILE, b"\x80\x04}q\0." * 9)], WEIGHTS_FILE),
    "a zip in the place of weights": ([*good()[:2], file(WEIGHTS_FILE, b"PK\3\4" + b"\0" * 60)], WEIGHTS_FILE),
    "a pickle in the place of a card": ([*good(), file("README.md", b"\x80\x04}q\0.")], "README.md: not UTF-8 text"),
    "weights alone": ([HEADER, file(WEIGHTS_FILE, SOUND[WEIGHTS_FILE])], "adapter_config.json: the file is missing"),
    "bytes that nobody sent": ([*good(), known("0" * 64)], "you have not sent"),
    "a digest that is none": ([*good(), known("x")], "line 4.oid"),
    "another digest": ([*good(), known("0" * 64, "md5")], "line 4.algo"),
}  # fmt: skip


def test_what_is_no_commit_is_refused_and_makes_nothing(client: Client) -> None:
    wrong = {}
    for name, (lines, words) in REFUSED.items():
        answer = client.commit(lines)
        if answer.status_code != 400 or words not in told(answer):
            wrong[name] = answer.status_code, told(answer)
    assert wrong == {}
    assert newest(client) == EMPTY_COMMIT


def test_every_problem_is_told_at_once(client: Client) -> None:
    answer = client.commit([*good(), file("a.bin", b"x"), file("../b", b"x"), file("README.md", b"x", encoding="rot13")])
    assert all(part in told(answer) for part in ("a.bin: a pickle", "../b: not a file", "line 6.encoding"))
    assert answer.headers["x-error-message"] == answer.json()["error"] == "the commit cannot be read"


@pytest.mark.parametrize(
    "body",
    [
        b"".join(json.dumps(line).encode() + b"\n" for line in [HEADER, *({"key": "deletedFile", "value": {"path": "x"}},) * 10_000]),
        b"\n" * 1000,
        b'{"key": "header", "value": {' + b'"a": "b", ' * 30_000,
        b" " * 1_000_000,
    ],
    ids=["10,000 operations", "empty lines", "a long line", "a blank line"],
)
def test_bombs_are_refused_for_their_size(client: Client, body: bytes) -> None:
    answer = client.commit(body)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_body_is_no_longer_than_what_is_stored(client: Client) -> None:
    declared = client.ask("POST", f"{client.root}/commit/main", content=b"x", headers={"Content-Length": str(2 * MAX_BLOB_BYTES)})
    assert declared.status_code == 413
    content = base64.b64encode(bytes(MAX_BLOB_BYTES + 3))
    long = client.commit(json.dumps(HEADER).encode() + b'\n{"key": "file", "value": {"path": "README.md", "content": "' + content)
    assert (long.status_code, told(long)) == (413, f"content: a file is longer than {MAX_BLOB_BYTES} bytes")


def test_a_long_file_is_read_in_flat_memory_and_to_the_byte(client: Client) -> None:
    """In parts of any length, with the mark of another request in its text."""
    content = bytes(range(256)) * 5000
    line = json.dumps(file("README.md", content)).encode() + b"\n" + json.dumps({"content:0": '\\"\u2028 é'}).encode()

    class Slow:
        def __init__(self) -> None:
            self.at = 0

        def read(self, length: int = -1, /) -> bytes:
            self.at += 7919
            return line[self.at - 7919 : self.at]

    first, second = commit_lines.read_lines(Slow(), len(content)), None
    for number, found in enumerate(first):
        if number:
            second = found.value
        else:
            assert len(found.value["value"]["content"]) < 100
            taken = found.content(found.value["value"]["content"], len(content))
            assert taken.open().read() == content
            assert taken.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
            taken.close()
    assert second == {"content:0": '\\"\u2028 é'}


def test_what_is_stored_is_known_by_its_digest_to_who_sent_it(client: Client) -> None:
    """As a copied file comes, or one that was sent before; another token that knows the digest learns nothing."""
    assert client.commit(good()).status_code == 200
    card = b"# A card\n"
    oid = hashlib.sha256(card).hexdigest()
    assert client.ask("PUT", f"/api/v1/blobs/sha256:{oid}", "admin", content=card).status_code == 201
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": len(card)}]}
    door = f"/{client.name}.git/info/lfs/objects/batch"
    asked = [client.ask("POST", door, role, json=batch).json()["objects"][0] for role in ("write", "admin")]
    assert ["error" in answer for answer in asked] == [True, False]
    assert client.commit([HEADER, known(oid)]).status_code == 400
    assert client.commit([HEADER, known(oid)], role="admin").status_code == 200
    assert client.ask("GET", f"/{client.name}/resolve/main/README.md").content == card


def test_a_card_alone_makes_a_version_with_the_same_weights(client: Client) -> None:
    client.hub.publish_files("job:1", client.name, sound_files(), base_model="org/base@abc", method="lora", rank=4, metrics={"loss": 0.5})
    assert client.commit([HEADER, file("README.md", b"# Card")]).status_code == 200
    found = [client.ask("GET", f"/api/v1/adapters/{client.name}/versions/{number}").json() for number in (1, 2)]
    for name in ("base_model", "method", "rank", "metrics"):
        assert found[0][name] == found[1][name], name
    assert found[1]["source"].startswith("commit:")
    weights = [{layer["digest"] for layer in version["manifest"]["layers"]} for version in found]
    assert weights[0] < weights[1]


def test_a_repeated_commit_is_one_version(client: Client) -> None:
    """Whose answer was lost: with a parent or without, also of a deletion, and also after others have published."""
    first = [client.commit(good()).json()["commitOid"] for _ in range(2)]
    card = [with_header(parentCommit=first[0][:8]), file("README.md", b"# Card")]
    second = [client.commit(card).json()["commitOid"] for _ in range(2)]
    deletion = [HEADER, {"key": "deletedFile", "value": {"path": "README.md"}}]
    third = [client.commit(deletion).json()["commitOid"] for _ in range(2)]
    for made in (first, second, third):
        assert made[0] == made[1]
    assert client.commit(card).json()["commitOid"] == second[0]
    assert len({first[0], second[0], third[0]}) == 3
    assert history(client) == 3
    other = client.commit([with_header(parentCommit=first[0]), file("README.md", b"# Other")])
    assert (other.status_code, other.json()["code"]) == (412, "stale_parent")


def test_of_two_commits_on_one_parent_one_wins(stored: Client) -> None:
    """And of those without a parent none is lost."""
    parent = stored.commit(good()).json()["commitOid"]
    raced = race(stored, [[with_header(parentCommit=parent), file("README.md", b"# %d" % number)] for number in range(4)])
    assert sorted(answer.status_code for answer in raced) == [200, 412, 412, 412]
    free = race(stored, [[HEADER, file("README.md", b"## %d" % number)] for number in range(4)])
    assert [answer.status_code for answer in free] == [200] * 4
    assert len({answer.json()["commitOid"] for answer in free}) == 4
    assert history(stored) == 6


def race(client: Client, commits: list[Lines]) -> list[httpx2.Response]:
    answers: list[httpx2.Response] = []
    threads = [threading.Thread(target=lambda lines=lines: answers.append(client.commit(lines))) for lines in commits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers
