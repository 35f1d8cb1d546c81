"""Base models by their ids: pinned to a commit, kept for later, and refused in words that help."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from tests.tiny_models import make_model, make_model_folder
from wegeft.contracts.errors import BaseModelNotFound
from workers.base_model import ModelRequest, load_base_model
from workers.model_source import find_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.BaseHTTPRequestHandler):
    """The two answers of the Hugging Face hub that loading needs."""

    folder: Path

    def log_message(self, *_args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(("/api/models/org/tiny/revision/nope", "/api/models/org/secret", "/api/models/org/gated")):
            code = "RevisionNotFound" if "nope" in path else "GatedRepo" if "gated" in path else "RepoNotFound"
            self._send(403 if code == "GatedRepo" else 404, b"{}", {"X-Error-Code": code})
        elif path.startswith("/api/models/org/tiny/tree/"):
            self._send(200, json.dumps([self._entry(file) for file in sorted(self.folder.iterdir())]).encode())
        elif path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": file.name} for file in sorted(self.folder.iterdir())]
            self._send(200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            self._send_file(self.folder / path.rpartition("/")[2])
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _entry(self, file: Path) -> dict[str, Any]:
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": hashlib.sha1(file.read_bytes()).hexdigest()}

    def _send_file(self, file: Path) -> None:
        content = file.read_bytes()
        self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    copy = make_model_folder(tmp_path / "repository")
    (copy / "README.md").write_text("---\nlicense: mit\n---\n")
    (copy / "pytorch_model.bin").write_bytes(b"a pickle")
    (copy / "code.py").write_text("raise SystemExit\n")
    handler = type("Handler", (_Hub,), {"folder": copy})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


_ASK = """
import json, sys
from wegeft.contracts.errors import WegeftError
from workers.model_source import find_model
for model, revision in json.loads(sys.argv[1]):
    try:
        source = find_model(model, revision)
        print(json.dumps([source.identity, source.commit, source.license]))
    except WegeftError as error:
        print(json.dumps([error.code, error.problems[0].path, str(error)]))
"""


def ask(endpoint: str, home: Path, *wanted: tuple[str, str | None]) -> list[list[str]]:
    """Find models at revisions in a process of its own, for the libraries read their endpoint when they are imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", _ASK, json.dumps(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()[-len(wanted) :]]


def test_an_id_is_pinned_to_its_commit_and_works_offline_afterwards(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    pinned = [f"org/tiny@{COMMIT}", COMMIT, "mit"]
    assert ask(hub, home, ("org/tiny", None)) == [pinned]
    fetched = {path.name for path in home.rglob("snapshots/*/*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "code.py"}
    assert ask("http://127.0.0.1:9", home, ("org/tiny", None), ("org/tiny", COMMIT)) == [pinned, pinned]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    base = load_base_model(ModelRequest(base_model="org/tiny"))
    assert [base.identity, base.commit, base.license] == pinned
    assert all(torch.equal(*pair) for pair in zip(base.model.parameters(), make_model().parameters(), strict=True))


def test_an_id_that_the_hub_refuses_says_why(hub: str, tmp_path: Path) -> None:
    expected = {
        ("org/secret", None): ["base_model_not_found", "base_model", "no such model"],
        ("org/tiny", "nope"): ["base_model_not_found", "base_model_revision", "no such revision"],
        ("org/gated", None): ["base_model_unusable", "base_model", "gated"],
    }
    for (code, path, words), (found_code, found_path, text) in zip(expected.values(), ask(hub, tmp_path / "home", *expected), strict=True):
        assert (found_code, found_path) == (code, path)
        assert words in text


def test_an_id_without_a_network_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(BaseModelNotFound) as caught:
        find_model("no-such-org/no-such-model")
    assert "local cache" in caught.value.message
