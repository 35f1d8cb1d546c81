"""The example of a federation: its job file is right, and its sites share no row."""

import json
from pathlib import Path

from examples.federation.demo import JOB_FILE
from examples.federation.split import ROWS, split
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
