"""What is written is read back: by our reader and by the library's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import numpy as library

from wegeft.contracts.errors import InvalidTensors
from wegeft.contracts.tensor_writer import bfloat16_bits, round_to, widen_bfloat16, write_tensors
from wegeft.contracts.tensors import parse_header, read_tensors

TENSORS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6).filter(lambda name: ".." not in name and not name.startswith(".")),
    arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=4), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(TENSORS, st.sampled_from(["F32", "F64"]))
def test_numbers_come_back_as_they_were(tensors: dict[str, np.ndarray], stored: str) -> None:
    content = write_tensors(tensors, stored, {"b": "2", "a": "1"})  # type: ignore[arg-type]
    ours, theirs = read_tensors(content), library.load(content)
    assert ours.keys() == theirs.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(ours[name], array)
        np.testing.assert_array_equal(theirs[name], array)
    assert parse_header(content, len(content)).metadata == {"a": "1", "b": "2"}
    assert content == write_tensors(dict(reversed(tensors.items())), stored, {"a": "1", "b": "2"})  # type: ignore[arg-type]


@settings(deadline=None)
@given(arrays.arrays(np.float32, 20, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_bfloat16_is_rounded_as_torch_does(array: np.ndarray) -> None:
    expected = torch.from_numpy(array).bfloat16().float().numpy()
    np.testing.assert_array_equal(widen_bfloat16(bfloat16_bits(array)), expected)
    np.testing.assert_array_equal(round_to(array, "BF16"), expected)
    np.testing.assert_array_equal(read_tensors(write_tensors({"x": array}, "BF16"))["x"], expected)


def test_error_feedback_makes_up_for_rounding() -> None:
    """Sent in eight-bit mantissas a hundred times, a constant arrives on average to the last digit."""
    value, error, sent = np.array([0.1234567]), np.zeros(1), np.zeros(1)
    for _ in range(100):
        rounded = round_to(value + error, "BF16")
        error = value + error - rounded
        sent += rounded
    assert sent[0] / 100 == pytest.approx(value[0], abs=1e-5)
    assert abs(float(round_to(value, "BF16")[0]) - value[0]) > 1e-5


def test_tensors_without_numbers_are_left_out_and_others_aligned() -> None:
    content = write_tensors({"empty": np.zeros((0, 3)), "one": np.ones(1)}, "F64")
    assert list(read_tensors(content)) == ["one"]
    assert parse_header(content, len(content)).size % 8 == 0


@pytest.mark.parametrize(("value", "stored"), [(np.nan, "F64"), (np.inf, "F32"), (1e39, "F32"), (3.4e38, "BF16")])
def test_numbers_that_are_not_finite_as_stored_are_refused(value: float, stored: str) -> None:
    with pytest.raises(InvalidTensors, match="not finite"):
        write_tensors({"x": np.array([value])}, stored)  # type: ignore[arg-type]
