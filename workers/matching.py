"""Whether a generated answer says what was expected: all of it, what an expression finds in it, or its last number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import assert_never

import regex

from wegeft.contracts.errors import InvalidData, InvalidJob, Problem, shorten
from wegeft.contracts.job import EvaluationSpec

TEXT_LIMIT = 16_384
"""Characters of an answer that are looked through, the last ones."""
SEARCH_SECONDS = 0.1
"""Of one search: some expressions take years on some texts, and what a model says cannot be foreseen."""
_TOLERANCE = 1e-3
"""As LLM-Adapters' evaluation of Math10k has it."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


@dataclass(frozen=True)
class Matcher:
    """Compares answers in the way that a job asks for."""

    wanted: EvaluationSpec

    def check(self, expected: list[str]) -> None:
        """Raise ``InvalidJob`` for an expression that cannot be used, ``InvalidData`` for expected answers without what is compared."""
        if self.wanted.regex is not None:
            try:
                regex.compile(self.wanted.regex)
            except (regex.error, RecursionError, OverflowError) as error:
                message = f"not a regular expression: {error}"
                raise InvalidJob(message, path="evaluation.regex", value=self.wanted.regex) from error
        if self.wanted.match == "last_number":
            missing = [(row, text) for row, text in enumerate(expected, 1) if _last_number(text) is None]
            problems = [
                Problem(path=f"held-out row {row}", message="the expected answer has no number", value=shorten(text))
                for row, text in missing[:20]
            ]
            if problems:
                raise InvalidData(f"{len(missing)} held-out answers have no number to compare", problems=problems)

    def is_match(self, given: str, expected: str) -> bool:
        """Say whether an answer says what was expected.

        An expression that finds nothing in the expected answer is taken to be for given ones, and the expected answer counts whole.
        """
        match self.wanted.match:
            case "equality":
                return given.strip() == expected.strip()
            case "regex":
                found = self._find(given)
                wanted = self._find(expected)
                return found is not None and found == (expected.strip() if wanted is None else wanted)
            case "last_number":
                number, right = _last_number(given), _last_number(expected)
                return number is not None and right is not None and abs(number - right) <= _TOLERANCE
            case _:
                assert_never(self.wanted.match)

    def share(self, given: list[str], expected: list[str]) -> float:
        """Return the share of answers that match, 0 to 1."""
        return sum(map(self.is_match, given, expected)) / len(expected)

    def _find(self, text: str) -> str | None:
        """Return what the expression's first group matches, or all of it where it has none; None for nothing, or nothing in time."""
        found: str | None = None
        try:
            for match in regex.finditer(self.wanted.regex or "", text[-TEXT_LIMIT:], timeout=SEARCH_SECONDS):
                found = match.group(1 if match.re.groups else 0)
                if self.wanted.regex_pick == "first":
                    break
        except TimeoutError:
            return None
        return None if found is None else found.strip()


def _last_number(text: str) -> float | None:
    """Return the last number in a text, whatever commas group its digits by."""
    found = _NUMBER.findall(text[-TEXT_LIMIT:])
    return float(found[-1].replace(",", "")) if found else None
