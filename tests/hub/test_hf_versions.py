"""The scenario of ``test_hf_upload.py``, by older clients of Hugging Face, each in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.hf_clients import new_endpoint
from tests.hub.test_hf_upload import check_answer, run_scenario


def python_with(version: str, environment: Path) -> str:
    """Install a version of their library into a new environment; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=300)
    python = str(environment / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"huggingface_hub=={version}"], check=True, timeout=900)
    return python


@pytest.mark.soak
@pytest.mark.parametrize("version", ["0.36.2", "1.33.0"])
def test_everything_that_a_person_does_by_hand(version: str, tmp_path: Path) -> None:
    python = python_with(version, tmp_path / "venv")
    with new_endpoint(tmp_path) as endpoint:
        answer = run_scenario(endpoint, python, tmp_path)
    assert answer["version"] == version
    check_answer(answer)
