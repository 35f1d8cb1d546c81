"""The example of a federation: its job file is right, and its sites share no row."""

import json
from pathlib import Path

from examples.federation.chapters import Chapters
from examples.federation.demo import JOB_FILE
from examples.federation.measure import measure
from examples.federation.split import ROWS, split
from tests.tiny_models import make_model_folder
from wegeft.contracts.job import load_spec


def test_job_file_is_a_federation_that_three_sites_can_close() -> None:
    spec = load_spec(JOB_FILE.read_text(encoding="utf-8"))
    assert spec.federation is not None
    assert spec.datasets == ()
    assert spec.federation.min_sites == 3


def test_every_row_is_one_sites_own(tmp_path: Path) -> None:
    files = split(tmp_path)
    rows = {name: file.read_text(encoding="utf-8").splitlines() for name, file in files.items()}
    assert list(rows) == ["site-a", "site-b", "site-c"]
    assert sorted(row for part in rows.values() for row in part) == sorted(ROWS.read_text(encoding="utf-8").splitlines())
    assert all(" + " in json.loads(row)["messages"][0]["content"] for row in rows["site-a"])
    assert not any(" + " in row for name in ("site-b", "site-c") for row in rows[name])


def test_models_are_measured_on_the_held_out_rows(tmp_path: Path) -> None:
    (what, loss, share), *others = measure(make_model_folder(tmp_path / "model"), {})
    assert what == "not at all (base model)"
    assert 1 < loss < 20
    assert share == 0
    assert others == []


def test_a_story_goes_on_behind_what_was_told(tmp_path: Path) -> None:
    told: list[str] = []

    def tell(name: str) -> object:
        told.append(name)
        return {"name": name}

    def telling(rounds: int) -> Chapters:
        chapters = Chapters(tmp_path / "story", {"rounds": rounds})
        assert chapters.once("first", lambda: tell("first")) == {"name": "first"}
        return chapters

    telling(3)
    (tmp_path / "story" / "adapter").write_text("kept")
    again = telling(3)
    assert again.is_going_on
    again.once("second", lambda: tell("second"))
    assert told == ["first", "second"]
    assert (tmp_path / "story" / "adapter").exists()
    assert not telling(4).is_going_on, "another story"
    assert not (tmp_path / "story" / "adapter").exists()
    ended = telling(4)
    ended.end()
    assert not telling(4).is_going_on, "it was told to its end"
    assert told == ["first", "second", "first", "first"]
