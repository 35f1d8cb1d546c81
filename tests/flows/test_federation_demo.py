"""The story of ``make demo-federation`` on a tiny model: told whole, stopped in the middle, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_models import make_model_folder

ROOT = Path(__file__).parents[2]
SECONDS = 600.0


def command(tmp_path: Path) -> list[str]:
    size = ["--rounds", "2", "--steps", "2", "--folder", str(tmp_path / "story"), "--model", str(tmp_path / "model")]
    return [sys.executable, "-m", "examples.federation.demo", *size]


def told(tmp_path: Path) -> set[str]:
    """The chapters that were told."""
    file = tmp_path / "story" / "chapters.json"
    return set(json.loads(file.read_text())["chapters"]) if file.exists() else set()


@pytest.mark.soak
def test_the_story_is_told_to_its_end_although_it_was_stopped(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "model")
    end = time.monotonic() + SECONDS
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    while "a site was killed" not in told(tmp_path):
        assert first.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait(60) != 0
    again = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Going on where the last run was stopped" in again.stdout
    assert again.stdout.count("was killed in round") == 1, "the site was killed before"
    kept = json.loads((tmp_path / "story" / "chapters.json").read_text())
    figures = kept["chapters"]["figures"]
    assert [what for what, _, _ in figures] == [
        "not at all (base model)", "federated", "site-a alone", "site-b alone", "site-c alone", "centralised"
    ]  # fmt: skip
    assert len({loss for _, loss, _ in figures}) == len(figures), "each is another adapter"
    assert kept["is_over"]
