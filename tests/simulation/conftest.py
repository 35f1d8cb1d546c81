"""One tiny base model and its rows for all simulations of these tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from simulation.preparation import Given
from tests.simulation.tiny import rows_of, write_model


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="package")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return rows_of(tmp_path_factory.mktemp("rows"))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A hand computes on one core; other tests have theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
