"""The scenario of ``test_hf_upload.py``, by older clients of Hugging Face, each in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.hf_clients import new_endpoint
from tests.hub.test_hf_upload import check_answer, run_scenario


@pytest.mark.soak
@pytest.mark.parametrize("version", ["0.36.2", "1.33.0"])
def test_everything_that_a_person_does_by_hand(version: str, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=300)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", f"huggingface_hub=={version}"]
    subprocess.run(install, check=True, timeout=900)
    with new_endpoint(tmp_path) as endpoint:
        answer = run_scenario(endpoint, str(python), tmp_path)
    assert answer["version"] == version
    check_answer(answer)
