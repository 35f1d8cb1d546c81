"""The other doors of the dialect, asked by hand: names, announcements, cards, tags and branches."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from hub.folder_store import FolderStore
from hub.hf_api.front_matter import check_card
from hub.hf_api.ignored_files import is_ignored
from tests.hub.hf_clients import sound_files
from tests.hub.serving import MAX_BLOB_BYTES, made_hub
from tests.hub.test_hf_commits import Client, file, good, told, with_header
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AliasMove

ROOT = "/api/models/demo/made"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a hub with demo/made, which has two versions, and demo/empty; for tests that change neither."""
    folder = tmp_path_factory.mktemp("doors")
    with made_hub(f"sqlite:///{folder / 'hub.db'}", FolderStore(folder / "blobs")) as hub:
        Client(hub, "demo/empty").create()
        client = Client(hub).create()
        assert client.commit(good()).status_code == 200
        assert client.commit([with_header(summary="card"), file("README.md", b"# Card")]).status_code == 200
        yield client


@pytest.mark.parametrize(
    "body",
    [
        {"name": "../x", "organization": "demo"},
        {"name": "x", "organization": "de/mo"},
        {"name": "x", "organization": "api"},
        {"name": "d\u0435mo", "organization": "demo"},
        {"name": "x" * 200, "organization": "demo"},
        {"name": "x.git", "organization": "demo"},
        {"name": "x", "organization": "demo", "type": "dataset"},
        {"name": "x", "organization": "demo", "visibility": "protected"},
        {"name": ["x"]},
        {},
        [],
    ],
)
def test_what_cannot_be_made_is_refused(client: Client, body: Any) -> None:
    assert client.ask("POST", "/api/repos/create", json=body).status_code == 400


def test_a_name_alone_is_in_ones_own_namespace(client: Client) -> None:
    assert client.ask("POST", "/api/repos/create", json={"name": "mine"}).json()["id"] == "write/mine"


def test_a_name_is_taken_whatever_its_case_and_says_where_it_is(client: Client) -> None:
    answer = client.ask("POST", "/api/repos/create", json={"name": "MADE", "organization": "Demo"})
    assert answer.status_code == 409
    assert answer.json()["url"].endswith("/Demo/MADE")


def announce(client: Client, *files: dict[str, Any], **more: Any) -> Any:
    return client.ask("POST", f"{ROOT}/preupload/main", json={"files": list(files), **more})


def announced(path: str, content: bytes) -> dict[str, Any]:
    return {"path": path, "size": len(content), "sample": base64.b64encode(content[:512]).decode()}


def test_files_come_in_the_commit_and_known_ones_need_not(client: Client) -> None:
    weights = sound_files()[WEIGHTS_FILE]
    answer = announce(client, announced(WEIGHTS_FILE, weights), announced("README.md", b"# Other"), announced(".gitattributes", b""))
    shown = {found["path"]: found for found in answer.json()["files"]}
    assert {found["uploadMode"] for found in shown.values()} == {"regular"}
    assert [found["shouldIgnore"] for found in shown.values()] == [False, False, True]
    assert shown[WEIGHTS_FILE]["oid"] == hashlib.sha1(b"blob %d\0%s" % (len(weights), weights)).hexdigest()
    assert "oid" not in shown["README.md"]


def test_a_file_is_refused_before_it_is_sent(client: Client) -> None:
    answer = announce(
        client,
        announced("a/../README.md", b""),
        announced("optimizer.pt", b""),
        announced(WEIGHTS_FILE, b"\x80\x04}q\0." * 9),
        {"path": CONFIG_FILE, "size": MAX_BLOB_BYTES + 1, "sample": "e30="},
        {"path": "job.json", "size": 1, "sample": "*"},
    )
    assert answer.status_code == 400
    for words in ("README.md: not a file", "optimizer.pt: a pickle", "not safetensors", "the file is too large", "job.json: the sample is"):
        assert words in told(answer)


@pytest.mark.parametrize(
    "body",
    [{}, {"files": [{"path": "x"}]}, {"files": [{"path": "x", "size": -1}]}, {"files": [{"path": "x", "size": 1}] * 257}, {"files": 1}],
)
def test_an_announcement_that_is_none_is_refused(client: Client, body: Any) -> None:
    assert client.ask("POST", f"{ROOT}/preupload/main", json=body).status_code == 400


@pytest.mark.parametrize(
    ("path", "lines", "is_it"),
    [
        ("README.md", "", False),
        ("README.md", "# README.md", False),
        ("README.md", "*.md", True),
        ("README.md", "/README.md", True),
        ("README.md", "*\n!README.md", False),
        ("README.md", "README.md/", False),
        ("a/b.md", "a/", True),
        ("a/b.md", "/a", True),
        ("a/b.md", "b", False),
        ("a/b.md", "**/b.md", True),
        ("a/b/c", "a/**", True),
        ("README.md", "[", False),
        ("x" * 5000, "*a" * 2000, False),
    ],
)
def test_what_a_gitignore_names_is_left_out(path: str, lines: str, is_it: bool) -> None:
    assert is_ignored(path, lines) is is_it


@pytest.mark.parametrize("create_pr", ["", "?create_pr=1"])
@pytest.mark.parametrize("revision", ["main", "1", "refs%2Fpr%2F1", "stable"])
def test_only_main_grows(client: Client, revision: str, create_pr: str) -> None:
    is_right = revision == "main" and not create_pr
    assert (client.ask("POST", f"{ROOT}/preupload/{revision}{create_pr}", json={"files": []}).status_code == 200) is is_right
    if not is_right:
        answer = client.commit(good(), f"{revision}{create_pr}")
        assert answer.status_code == 400


@pytest.mark.parametrize(
    "tag", ["", "main", "latest", "7", "0", "f" * 40, "a b", "../x", "refs/heads/x", "é", "x" * 65, "-x", "a\nb", "a\0"]
)
def test_a_tag_that_could_mean_something_else_is_refused(client: Client, tag: str) -> None:
    assert client.ask("POST", f"{ROOT}/tag/main", json={"tag": tag}).status_code == 400


def test_a_tag_never_means_another_version(client: Client) -> None:
    def post(revision: str, tag: str = "V1.0") -> int:
        return int(client.ask("POST", f"{ROOT}/tag/{revision}", json={"tag": tag}).status_code)

    assert [post("1"), post("1"), post("2")] == [200, 409, 409]
    assert client.ask("GET", f"{ROOT}/revision/V1.0").json()["sha"] == client.ask("GET", f"{ROOT}/revision/1").json()["sha"]
    assert client.ask("DELETE", f"{ROOT}/tag/V1.0").status_code == 200
    assert client.ask("DELETE", f"{ROOT}/tag/V1.0").headers["x-error-code"] == "RevisionNotFound"
    assert client.ask("GET", f"{ROOT}/revision/V1.0").headers["x-error-code"] == "RevisionNotFound"
    assert [post("2"), post("1")] == [409, 200]
    assert post("nowhere", "v2") == 404


def test_nobody_gives_one_name_to_an_alias_and_a_tag_and_a_job_that_does_changes_no_tag(client: Client) -> None:
    assert client.ask("POST", f"{ROOT}/tag/1", json={"tag": "v-first"}).status_code == 200
    assert client.ask("POST", f"{ROOT}/branch/v-first", json={}).status_code == 409
    own = "/api/v1/adapters/demo/made"
    assert client.ask("PUT", f"{own}/aliases/v-first", json={"version": 2}).status_code == 409
    assert client.ask("POST", f"{ROOT}/branch/moving", json={"startingPoint": "1"}).status_code == 200
    assert client.ask("POST", f"{ROOT}/tag/1", json={"tag": "moving"}).status_code == 409
    client.hub.move("v-first", AliasMove(version=2), "demo/made")
    assert client.ask("GET", f"{own}/versions/v-first").json()["version"] == 1
    assert client.ask("GET", f"{own}/versions/moving").json()["version"] == 1


@pytest.mark.parametrize("branch", ["main", "latest", "7", "Upper", "a%2Fb", "%2E%2E%2Fx", "é", "x" * 65])
def test_a_branch_is_an_alias(client: Client, branch: str) -> None:
    assert client.ask("POST", f"{ROOT}/branch/{branch}", json={}).status_code == (409 if branch == "latest" else 400)
    assert client.ask("DELETE", f"{ROOT}/branch/{branch}").status_code == 400


def test_an_empty_adapter_is_there_for_who_will_publish_to_it_alone(client: Client) -> None:
    root = "/api/models/demo/empty"
    assert client.ask("GET", root).json()["siblings"] == []
    assert client.ask("GET", f"{root}/refs").json()["tags"] == []
    for path in (f"{root}/tree/main", f"{root}/commits/main"):
        assert client.ask("GET", path).json() == []
    missing = client.ask("HEAD", "/demo/empty/resolve/main/README.md")
    assert (missing.headers["x-error-code"], missing.headers["x-repo-commit"]) == ("EntryNotFound", "0" * 40)
    for path, code in ((f"{root}/revision/1", "RevisionNotFound"), (f"{root}/revision/v1", "RevisionNotFound")):
        assert client.ask("GET", path).headers["x-error-code"] == code
    assert client.ask("POST", f"{root}/tag/main", json={"tag": "v1"}).headers["x-error-code"] == "RevisionNotFound"
    assert client.ask("GET", "/api/v1/adapters/demo/empty").status_code == 404
    assert "demo/empty" not in [model["id"] for model in client.ask("GET", "/api/models").json()]


def test_the_history_comes_in_pages_from_where_one_asks(client: Client) -> None:
    assert [commit["title"] for commit in client.ask("GET", f"{ROOT}/commits/main").json()] == ["card", "a commit"]
    assert [commit["title"] for commit in client.ask("GET", f"{ROOT}/commits/1").json()] == ["a commit"]
    assert [commit["title"] for commit in client.ask("GET", f"{ROOT}/commits/main?below=2").json()] == ["a commit"]
    assert client.ask("GET", f"{ROOT}/commits/main?below=0").status_code == 400


def test_xet_leads_nowhere_and_says_so(client: Client) -> None:
    answer = client.ask("GET", f"{ROOT}/xet-write-token/main")
    assert answer.status_code == 404
    assert "HF_HUB_DISABLE_XET=1" in answer.headers["x-error-message"]


@pytest.mark.parametrize(
    ("text", "errors", "warnings"),
    [
        ("---\nlicense: mit\nbase_model: org/base\n---\nText\n", 0, 0),
        ("# No metadata", 0, 1),
        ("---\n---\n", 0, 1),
        ("---\nbase_model: ''\n---\n", 0, 1),
        ("---\n- a\n---\n", 1, 0),
        ("---\na: [\n---\n", 1, 0),
        ("---\na: &x 1\nb: *x\n---\n", 1, 0),
        ("---\na: !!python/object/apply:os.system ['true']\n---\n", 1, 0),
        (f"---\na: {'[' * 500}{']' * 500}\n---\n", 1, 0),
        (f"---\na: {'x' * 70_000}\n---\n", 1, 0),
        ("---\na: \x01\n---\n", 1, 0),
        ("---\na: 0000-00-00\n---\n", 0, 1),
        ("---\na: 2026-11-21\n---\n", 0, 0),
    ],
)
def test_the_head_of_a_card_is_looked_at(client: Client, text: str, errors: int, warnings: int) -> None:
    assert tuple(map(len, check_card(text))) == (errors, warnings)
    answer = client.ask("POST", "/api/validate-yaml", json={"content": text, "repoType": "model"})
    assert (answer.status_code, len(answer.json()["errors"]), len(answer.json()["warnings"])) == (400 if errors else 200, errors, warnings)
