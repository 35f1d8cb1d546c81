"""The rooms and the arrows of ARCHITECTURE.md, held against the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("wegeft", "hub", "orchestrator", "workers", "simulation", "cli", "infra")

ALLOWED_IN = {
    "torch": ("wegeft/method/", "workers/"),
    "peft": ("wegeft/method/", "workers/"),
    "transformers": ("wegeft/method/", "workers/"),
    "datasets": ("workers/",),
    "ray": ("workers/pool.py", "workers/crew.py"),
    "minio": ("hub/s3",),
    "sqlalchemy": ("hub/", "orchestrator/", "infra/", "cli/serve.py", "cli/local_accounts.py"),
    "pickle": (),
}
"""Which files may import what; design: torch and ray stay out of the services, the object store's SDK in hub/s3*.py, no pickle at all."""

SQL_FILES = ("hub/catalog", "orchestrator/ledger", "infra/audit.py", "infra/auth.py", "infra/database.py", "infra/migrations/")
"""Where statements are built; other modules only open transactions and pass connections on."""


MOST_LINES = 350
"""Of a module."""
MOST_FUNCTION_LINES = 45
"""Of a function, without its docstring: a table of routes, or a test that tells a story; most have 5 to 20."""


def source_files() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def every_file() -> list[Path]:
    return source_files() + [path for room in ("bench", "examples", "tests") for path in sorted((ROOT / room).rglob("*.py"))]


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED_IN))
def test_package_stays_in_its_files(package: str) -> None:
    """A heavy or dangerous package is imported only where the design allows it."""
    strays = [
        relative
        for path in source_files()
        if any(name.split(".")[0] == package for name in imported_names(path))
        and not (relative := path.relative_to(ROOT).as_posix()).startswith(ALLOWED_IN[package])
    ]
    assert strays == []


def test_sql_is_built_only_in_its_files() -> None:
    """Statements are made in the catalog, the ledger, accounts and the database module."""
    builders = {f"sqlalchemy.{name}" for name in ("select", "insert", "update", "delete", "Table", "Column", "text")}
    strays = [
        relative
        for path in source_files()
        if imported_names(path) & builders and not (relative := path.relative_to(ROOT).as_posix()).startswith(SQL_FILES)
    ]
    assert strays == []


@pytest.mark.parametrize(
    "module", ["wegeft", "wegeft.client", "cli.main", "cli.serve", "hub.api", "orchestrator.api", "orchestrator.ray_gateway"]
)
def test_services_start_without_torch_and_ray(module: str) -> None:
    """Importing a service or the client loads neither torch nor ray."""
    code = f"import sys, {module}; print([m for m in ('torch', 'ray', 'transformers', 'peft', 'datasets') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert (answer.stdout.strip(), answer.returncode) == ("[]", 0), answer.stderr


def test_module_is_named_for_a_noun() -> None:
    """No module is a drawer for everything."""
    drawers = {"utils", "helpers", "common", "misc", "manager", "core", "base"}
    assert [path.relative_to(ROOT).as_posix() for path in every_file() if path.stem in drawers] == []


def test_no_module_outgrows_its_reader() -> None:
    """One that has is split by what it is about, as `ARCHITECTURE.md` and the modules beside it do."""
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in every_file()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
