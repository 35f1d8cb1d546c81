"""Updates on the wire: what a site writes is what its server reads, to half a scale, and nothing else is read at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import numpy as library

from wegeft.contracts.errors import InvalidTensors
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.tensors import parse_header, read_tensors
from wegeft.contracts.wire import as_received, bytes_on, read_update, scale_shape, write_update

WIRES = ["fp32", "bf16", "int8"]
MATRICES = arrays.arrays(np.float64, arrays.array_shapes(max_dims=3, max_side=6), elements=st.floats(-(2.0**99), 2.0**99, width=32))
NUMBERS = np.array([[1, -127, 0], [3, 4, 5]], dtype=np.int8)
SCALES = np.array([[0.5], [0.25]], dtype=np.float32)


@settings(deadline=None)
@given(MATRICES, st.sampled_from(WIRES))
def test_server_reads_what_the_site_thinks_it_sent(array: np.ndarray, wire: Any) -> None:
    content = write_update({"a.phi": array}, wire)
    found = read_update(content, wire)
    assert list(found) == ["a.phi"]
    assert found["a.phi"].dtype == np.float32
    np.testing.assert_array_equal(found["a.phi"].astype(np.float64), as_received("a.phi", array, wire))
    assert content == write_update({"a.phi": array.copy()}, wire)
    header = parse_header(content, len(content), frozenset({"I8", "F32", "BF16"}))
    assert len(content) - header.size == bytes_on(wire, array.shape)


@settings(deadline=None)
@given(MATRICES)
def test_int8_is_off_by_half_a_scale_at_most(array: np.ndarray) -> None:
    stored = library.load(write_update({"x": array}, "int8"))
    scale = stored["x.scale"].astype(np.float64)
    assert stored["x"].dtype == np.int8
    assert stored["x.scale"].shape == scale_shape(array.shape)
    assert np.all(np.abs(as_received("x", array, "int8") - array) <= 0.5001 * scale)


@pytest.mark.parametrize(
    ("shape", "expected"), [((576, 8), (1, 8)), ((8, 576), (8, 1)), ((4, 4), (4, 1)), ((7,), (1,)), ((5, 2, 3), (1, 2, 1))]
)
def test_scales_run_along_the_shorter_side(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert scale_shape(shape) == expected


def test_rows_of_zeros_stay_zero() -> None:
    assert not as_received("x", np.zeros((3, 4)), "int8").any()
    np.testing.assert_array_equal(read_update(write_update({"x": np.zeros((3, 4))}, "int8"), "int8")["x"], np.zeros((3, 4)))


@pytest.mark.parametrize("wire", ["bf16", "int8"])
def test_error_feedback_makes_up_for_rounding(wire: Any) -> None:
    """Sent a hundred times, a constant arrives on average to a hundredth of what one sending cuts off."""
    value = np.random.default_rng(0).normal(size=(8, 3))
    error, sent = np.zeros_like(value), np.zeros_like(value)
    for _ in range(100):
        received = as_received("x", value + error, wire)
        error = value + error - received
        sent += received
    once = np.abs(as_received("x", value, wire) - value).max()
    assert np.abs(sent / 100 - value).max() < 0.05 * once


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        ({"x.scale": None}, ["x.scale"]),
        ({"x.scale": SCALES * [[1], [0]]}, ["x.scale"]),
        ({"x.scale": -SCALES}, ["x.scale"]),
        ({"x.scale": SCALES.T}, ["x.scale"]),
        ({"x.scale": np.ones((2, 1), dtype=np.int8)}, ["x.scale"]),
        ({"x": NUMBERS.astype(np.float32)}, ["x"]),
        ({"x": NUMBERS - np.array([[0, 1, 0], [0, 0, 0]], dtype=np.int8)}, ["x"]),
        ({"y.scale": SCALES}, ["y.scale"]),
        ({"x": NUMBERS.astype(np.float32), "x.scale": None, "y.scale": SCALES}, ["x", "x.scale", "y.scale"]),
    ],
)
def test_every_problem_with_int8_is_told(change: dict[str, Any], paths: list[str]) -> None:
    tensors = {name: array for name, array in ({"x": NUMBERS, "x.scale": SCALES} | change).items() if array is not None}
    content = write_tensors(tensors, {name: "I8" if array.dtype == np.int8 else "F32" for name, array in tensors.items()})
    with pytest.raises(InvalidTensors) as caught:
        read_update(content, "int8")
    assert [problem.path for problem in caught.value.problems] == paths


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_scales_that_are_no_number_are_refused(number: float) -> None:
    content = write_tensors({"x": NUMBERS, "x.scale": SCALES}, {"x": "I8", "x.scale": "F32"})
    spoilt = content.replace(np.float32(0.25).tobytes(), np.float32(number).tobytes())
    assert spoilt != content
    with pytest.raises(InvalidTensors):
        read_update(spoilt, "int8")
    with pytest.raises(InvalidTensors):
        write_update({"x": np.array([[number]])}, "int8")


def test_adapters_hold_no_whole_numbers() -> None:
    content = write_update({"x": np.ones((2, 3))}, "int8")
    for wire in ("fp32", "bf16"):
        with pytest.raises(InvalidTensors, match="accepted type"):
            read_update(content, wire)  # type: ignore[arg-type]
    with pytest.raises(InvalidTensors, match="accepted type"):
        read_tensors(content)
    with pytest.raises(TypeError):
        write_tensors({"x": np.array([0.5])}, "I8")
