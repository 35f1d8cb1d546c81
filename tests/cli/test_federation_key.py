"""The key that signs receipts: made once, kept for its owner alone, and as the operator sets it."""

from pathlib import Path

import pytest

from cli.home import Home
from cli.serve import find_federation_key
from infra.settings import load_settings
from wegeft.contracts.errors import InvalidSetting


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.prepare()
    return home


def test_the_key_is_made_once_and_kept_for_its_owner_alone(home: Home) -> None:
    key = find_federation_key(load_settings(), home)
    assert len(key) == 32
    assert find_federation_key(load_settings(), home) == key
    assert home.federation_key_file.stat().st_mode & 0o777 == 0o600
    assert find_federation_key(load_settings(), Home(home.folder)) == key


def test_the_operators_key_comes_first(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEGEFT_FEDERATION_KEY", "ab" * 32)
    assert find_federation_key(load_settings(), home) == b"\xab" * 32
    assert not home.federation_key_file.exists()
    monkeypatch.setenv("WEGEFT_FEDERATION_KEY", "secret!")
    with pytest.raises(InvalidSetting) as caught:
        load_settings()
    assert "secret!" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "ab", "not hex"])
def test_a_damaged_key_is_not_replaced(home: Home, text: str) -> None:
    home.federation_key_file.write_text(text)
    with pytest.raises(InvalidSetting):
        find_federation_key(load_settings(), home)
    assert home.federation_key_file.read_text() == text
