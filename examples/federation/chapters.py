"""What of a story has been told, in a file: whoever tells it again after an interruption goes on behind that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Chapters:
    """The chapters of one story; of another one, or of one that was told to its end, nothing is left in the folder."""

    def __init__(self, folder: Path, story: Mapping[str, Any]) -> None:
        self._file = folder / "chapters.json"
        told = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
        self._is_going_on = told.get("story") == dict(story) and not told.get("is_over")
        self._told: dict[str, Any] = told if self._is_going_on else {"story": dict(story), "chapters": {}}
        if not self._is_going_on:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    @property
    def is_going_on(self) -> bool:
        """Whether an earlier run has told a part."""
        return self._is_going_on

    def once(self, name: str, tell: Callable[[], Any]) -> Any:
        """Return what a chapter comes to, as JSON has it; it is told where it was not before."""
        if name not in self._told["chapters"]:
            self._told["chapters"][name] = tell()
            self._keep()
        return self._told["chapters"][name]

    def end(self) -> None:
        """Note that there is nothing more to tell."""
        self._told["is_over"] = True
        self._keep()

    def _keep(self) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self._told, indent=1), encoding="utf-8")
        part.replace(self._file)
