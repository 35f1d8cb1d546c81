"""The stores that every suite of this folder runs over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from tests.conformance.stores import Backend, folder_backend, memory_backend, s3_backend


@pytest.fixture(params=["memory", "folder", "s3"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    match request.param:
        case "memory":
            yield memory_backend()
        case "folder":
            yield folder_backend(tmp_path / "store")
        case _:
            with urllib3.PoolManager() as connections:
                yield s3_backend(request.getfixturevalue("s3_server"), connections)
