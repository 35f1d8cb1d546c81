"""The pages of docs/ say what the code says."""

from pathlib import Path

import pytest

from cli.reference import pages
from infra.settings import PREFIX, Settings
from wegeft.contracts.errors import ERROR_KINDS
from wegeft.contracts.job import JobSpec

DOCS = Path(__file__).parents[2] / "docs"
PAGES = pages()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name], "run `make docs`, and commit what it writes"


def test_every_setting_field_and_error_is_on_its_page() -> None:
    for name in Settings.model_fields:
        assert f"`{PREFIX}{name.upper()}`" in PAGES["settings.md"]
    for name in JobSpec.model_fields:
        assert f"| `{name}` |" in PAGES["job-spec.md"]
    for code in ERROR_KINDS:
        assert f"`{code}` |" in PAGES["errors.md"]


def test_no_page_holds_a_line_that_breaks_its_table() -> None:
    for text in PAGES.values():
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert all(line.endswith("|") for line in tables)
        assert "PydanticUndefined" not in text
