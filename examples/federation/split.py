"""The arithmetic rows, parted among three sites by what they ask for: no site sees the whole task.

``python examples/federation/split.py`` writes each site's rows into ``.demo/federation``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "examples" / "arithmetic" / "train.jsonl"
FOLDER = ROOT / ".demo" / "federation"


def kind_of(row: Mapping[str, list[dict[str, str]]]) -> str:
    """Return whose row it is: sums are site-a's, differences of short numbers site-b's, and of long ones site-c's."""
    question = row["messages"][0]["content"].rpartition(": ")[2]
    if " + " in question:
        return "site-a"
    longest = max(len(word) for word in question.split() if word.isdigit())
    return "site-b" if longest < 3 else "site-c"


def split(folder: Path, rows: Path = ROWS) -> dict[str, Path]:
    """Write ``site-a.jsonl`` and so on into ``folder``; return each site's file."""
    parts: dict[str, list[str]] = {}
    for line in rows.read_text(encoding="utf-8").splitlines():
        parts.setdefault(kind_of(json.loads(line)), []).append(line)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in sorted(parts)}
    for name, file in files.items():
        file.write_text("".join(line + "\n" for line in parts[name]), encoding="utf-8")
    return files


if __name__ == "__main__":
    for written in split(FOLDER).values():
        sys.stdout.write(f"{written}\n")
