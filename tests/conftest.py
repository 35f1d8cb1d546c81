"""What every test stands on: a clean environment, and real servers that start once."""

import gc
import itertools
import os
import signal
from collections.abc import Generator

import pytest

pytest_plugins = ["tests.servers"]

_HOME_NUMBERS = itertools.count()

for _name in [name for name in os.environ if name.startswith("WEGEFT_") or name in {"RAY_ADDRESS", "HF_ENDPOINT", "HF_TOKEN"}]:
    del os.environ[_name]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell makes what it starts in the background deaf to Ctrl-C, and so would be every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is left with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare the garbage collector what stays until the end anyway: all modules, and all tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def home_is_private(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a test that forgets to say where its home is away from the user's own."""
    # Numbered here: for each name that is to be new, pytest's mktemp looks through all that the session has made.
    home = tmp_path_factory.getbasetemp() / "homes" / str(next(_HOME_NUMBERS))
    home.mkdir(parents=True)
    monkeypatch.setenv("WEGEFT_HOME", str(home))
