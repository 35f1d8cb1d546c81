"""The example of a federation: its job file is right, and its sites share no row."""

import json
from pathlib import Path

from examples.federation.demo import JOB_FILE, measure
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
