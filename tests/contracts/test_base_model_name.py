"""Names of base models: what is a commit, what is a pin, and what is neither."""

import pytest

from wegeft.contracts.base_model_name import have_same_pin, is_commit, kind_of_pin, unpin

COMMIT, DIGEST = "0123456789abcdef0123456789abcdef01234567", "ab" * 32


def test_forty_lower_case_hex_digits_are_a_commit() -> None:
    assert is_commit(COMMIT)


@pytest.mark.parametrize("text", ["", "main", COMMIT[1:], COMMIT + "0", COMMIT + "\n", COMMIT.upper(), "g" * 40, DIGEST])
def test_anything_else_is_none(text: str) -> None:
    assert not is_commit(text)


@pytest.mark.parametrize(
    ("name", "kind", "commit"),
    [
        (f"org/model@{COMMIT}", "commit", COMMIT),
        (f"m.gguf@sha256:{DIGEST}", "sha256", None),
        (f"/models/a@b@weights1:{DIGEST}", "weights1", None),
    ],
)
def test_a_full_pin_comes_off_its_name(name: str, kind: str, commit: str | None) -> None:
    assert (kind_of_pin(name), unpin(name)) == (kind, (name.rpartition("@")[0], commit))
    assert have_same_pin(name, f"other@{name.rpartition('@')[2]}")


@pytest.mark.parametrize("name", ["org/model", "org/model@main", f"org/model@{COMMIT.upper()}", f"@{COMMIT}", f"m@sha256:{COMMIT}"])
def test_what_is_no_full_pin_stays(name: str) -> None:
    assert (kind_of_pin(name), unpin(name), have_same_pin(name, name)) == (None, (name, None), None)
