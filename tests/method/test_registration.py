"""The method is known to PEFT once it is imported, and not before."""

import pickle
import subprocess
import sys

import peft
import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

from wegeft.method import WEGEFT, WeGeFTConfig, WeGeFTModel, registration


def test_import_is_light() -> None:
    """``import wegeft`` loads neither torch nor PEFT; touching the method does."""
    code = (
        "import sys, wegeft; assert not {'torch', 'peft'} & set(sys.modules), 'not light';"
        "wegeft.WeGeFTConfig; assert {'torch', 'peft'} <= set(sys.modules); import peft; assert 'WEGEFT' in list(peft.PeftType)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import wegeft

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = wegeft.nothing


def test_member_behaves_like_any_other() -> None:
    assert PeftType("WEGEFT") is WEGEFT is PeftType["WEGEFT"] is PeftType.WEGEFT
    assert list(PeftType)[-1] is WEGEFT
    assert WEGEFT == "WEGEFT"
    assert pickle.loads(pickle.dumps(WEGEFT)) is WEGEFT
    assert repr(WEGEFT) == "<PeftType.WEGEFT: 'WEGEFT'>"


def test_peft_maps_the_name_to_our_classes() -> None:
    assert peft.PEFT_TYPE_TO_CONFIG_MAPPING[WEGEFT] is WeGeFTConfig
    assert peft.PEFT_TYPE_TO_TUNER_MAPPING[WEGEFT] is WeGeFTModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[WEGEFT] == "wegeft_"


def test_registering_twice_changes_nothing() -> None:
    registration.register(WeGeFTConfig, WeGeFTModel)
    assert [member.value for member in PeftType].count("WEGEFT") == 1


def test_unchecked_release_of_peft_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft, "__version__", "0.22.0")
    with pytest.raises(ImportError, match=r"needs PEFT 0\.21\.x and found 0\.22\.0"):
        registration._add_member("ANOTHER")
    assert "ANOTHER" not in list(PeftType)
