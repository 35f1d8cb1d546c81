"""What answers of the hub's API say, and harm done to what it stores."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.hub.serving import Hub
from wegeft.contracts.adapter import WEIGHTS_FILE
from wegeft.contracts.errors import ErrorBody

API = "/api/v1"
FILE = f"{API}/adapters/demo/arithmetic/versions/1/files/{WEIGHTS_FILE}"
PROBLEM = "application/problem+json"


def problem(response: Any, status: int, code: str) -> ErrorBody:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    body = ErrorBody.model_validate(response.json())
    assert (body.status, body.code) == (status, code)
    assert body.request_id == response.headers["x-request-id"]
    return body


def rot(hub: Hub, tmp_path: Path, content: bytes, harmed: bytes) -> None:
    name = hashlib.sha256(content).hexdigest()
    path = tmp_path / "blobs" / "sha256" / name[:2] / name[2:4] / name
    path.chmod(0o600)
    path.write_bytes(harmed)
