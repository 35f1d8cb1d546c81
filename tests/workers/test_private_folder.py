"""An attempt's data is for this user alone, and gone when the attempt is, even where it was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from workers.private_folder import private_folder

_HOLD = """
import sys
from pathlib import Path
from workers.private_folder import private_folder
with private_folder(Path(sys.argv[1])) as folder:
    (folder / "data").write_text("secret")
    print(folder, flush=True)
    sys.stdin.read()
"""


def hold(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folder_is_private_and_goes_away(tmp_path: Path) -> None:
    with private_folder(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "data").write_text("secret")
    assert list(tmp_path.iterdir()) == []


def test_it_goes_away_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), private_folder(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    (killed, left), (living, held) = hold(tmp_path), hold(tmp_path)
    with killed, living:
        killed.kill()
        killed.wait(timeout=10)
        foreign = tmp_path / left.name.replace(left.name.split("-")[2], "00000000")
        foreign.mkdir()
        assert left.exists()
        with private_folder(tmp_path) as own:
            assert sorted(tmp_path.iterdir()) == sorted([own, held, foreign])
        living.communicate("")
    assert list(tmp_path.iterdir()) == [foreign]
