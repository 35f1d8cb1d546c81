"""The fused gradients, each way of computing them, against dense float64 and against autograd's own."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from wegeft.method.edit import edit_delta, edited_linear, is_cheaper_by_weight, read_codes

SCALING = 1.7


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def fused(x: Tensor, phi: Tensor, psi: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    reread, (code,) = read_codes(x, [psi])
    return edited_linear(reread, code, phi, (weight, bias), SCALING)


def test_both_ways_are_taken() -> None:
    assert is_cheaper_by_weight(tokens=1024, width=576, out_features=192)
    assert is_cheaper_by_weight(tokens=1024, width=1536, out_features=576)
    assert not is_cheaper_by_weight(tokens=1024, width=576, out_features=576)
    assert not is_cheaper_by_weight(tokens=1024, width=576, out_features=1536)
    assert not is_cheaper_by_weight(tokens=1, width=4096, out_features=4096)


@pytest.mark.parametrize("out_features", [3, 20])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(30, 8), (3, 10, 8), (2, 3, 5, 8)])
def test_value_and_gradients_equal_the_dense_weight(out_features: int, with_bias: bool, shape: tuple[int, ...]) -> None:
    assert is_cheaper_by_weight(tokens=30, width=8, out_features=out_features) == (out_features == 3)
    phi, psi, weight = numbers(8, 2), numbers(2, 8), numbers(out_features, 8)
    bias = numbers(out_features) if with_bias else None
    leaves = [leaf.requires_grad_() for leaf in (numbers(*shape, seed=5), phi, psi)]
    x = leaves[0]
    upstream = numbers(*shape[:-1], out_features, seed=9)
    dense = linear(x, weight + weight @ (SCALING * phi @ psi), bias)
    expected = torch.autograd.grad(dense, leaves, upstream)
    found_value = fused(x, phi, psi, weight, bias)
    found = torch.autograd.grad(found_value, leaves, upstream)
    torch.testing.assert_close(found_value, dense)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(linear(x + edit_delta(x, phi, psi, SCALING), weight, bias), dense)


def test_gradcheck() -> None:
    leaves = [numbers(5, 4).requires_grad_(), numbers(4, 2).requires_grad_(), numbers(2, 4).requires_grad_()]
    for out_features in (1, 6):
        weight, bias = numbers(out_features, 4), numbers(out_features)
        assert torch.autograd.gradcheck(lambda x, phi, psi, w=weight, b=bias: fused(x, phi, psi, w, b), leaves)


@pytest.mark.parametrize("consumed", [(0, 1, 2), (0, 2), (1,)])
def test_stacked_codes_are_the_codes_of_each(consumed: tuple[int, ...]) -> None:
    """Readers of one input share one product; one that never comes for its code counts as nothing."""
    x = numbers(3, 4, 6).requires_grad_()
    psis = [numbers(rank, 6, seed=rank).requires_grad_() for rank in (2, 3, 1)]
    phis = [numbers(6, rank, seed=rank).requires_grad_() for rank in (2, 3, 1)]
    weights = [numbers(5, 6, seed=i) for i in range(3)]
    leaves = [x, *(psis[i] for i in consumed), *(phis[i] for i in consumed)]
    reread, codes = read_codes(x, psis)
    together = sum(edited_linear(reread, codes[i], phis[i], (weights[i], None), SCALING).sin().sum() for i in consumed)
    apart = sum(fused(x, phis[i], psis[i], weights[i], None).sin().sum() for i in consumed)
    for one, other in zip(torch.autograd.grad(together, leaves), torch.autograd.grad(apart, leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_factors_get_no_gradient() -> None:
    x, phi, psi = numbers(30, 8).requires_grad_(), numbers(8, 2), numbers(2, 8)
    for out_features in (3, 20):
        weight = numbers(out_features, 8)
        (found,) = torch.autograd.grad(fused(x, phi, psi, weight, None).sum(), [x])
        torch.testing.assert_close(found, (weight + weight @ (SCALING * phi @ psi)).sum(0).expand_as(x))
        assert phi.grad is None
        assert psi.grad is None


def test_gradient_of_an_input_that_others_read_too_is_not_overwritten() -> None:
    """The sum is taken over in place only where nothing else can see it: here x has a residual path and a hook."""
    x, phi, psi, weight = numbers(30, 8).requires_grad_(), numbers(8, 2).requires_grad_(), numbers(2, 8).requires_grad_(), numbers(8, 8)
    middle = x * 1.0
    seen = []
    middle.register_hook(lambda gradient: seen.append(gradient.clone()))
    (fused(middle, phi, psi, weight, None) + middle).sum().backward()
    expected = 1 + (weight + weight @ (SCALING * phi @ psi)).sum(0).expand_as(x)
    torch.testing.assert_close(x.grad, expected.detach())
    torch.testing.assert_close(seen[0], expected.detach())


def test_backward_twice_over_a_kept_graph() -> None:
    x, phi, psi = (leaf.requires_grad_() for leaf in (numbers(30, 8), numbers(8, 2), numbers(2, 8)))
    for out_features in (3, 20):
        loss = fused(x, phi, psi, numbers(out_features, 8), None).pow(2).sum()
        first = torch.autograd.grad(loss, [x, phi, psi], retain_graph=True)
        second = torch.autograd.grad(loss, [x, phi, psi])
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)


def test_second_derivative_is_refused_not_wrong() -> None:
    x, phi, psi = (leaf.requires_grad_() for leaf in (numbers(30, 8), numbers(8, 2), numbers(2, 8)))
    (gradient,) = torch.autograd.grad(fused(x, phi, psi, numbers(5, 8), None).pow(2).sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_run_in_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    x, weight = numbers(30, 8).to(dtype).requires_grad_(), numbers(20, 8).to(dtype)
    phi, psi = numbers(8, 2).float().requires_grad_(), numbers(2, 8).float().requires_grad_()
    value = fused(x, phi, psi, weight, None)
    value.sum().backward()
    assert (value.dtype, x.grad.dtype, phi.grad.dtype, psi.grad.dtype) == (dtype, dtype, torch.float32, torch.float32)
    exact = linear(x.double(), weight.double() + weight.double() @ (SCALING * phi.double() @ psi.double()))
    assert (value.double() - exact).norm() < 4 * torch.finfo(dtype).eps * exact.norm()


def test_saved_for_backward_is_the_input_and_the_code_and_no_more() -> None:
    """What grows with the tokens is kept once: x and z, never the edited input."""
    x, phi, psi, weight = numbers(300, 8).requires_grad_(), numbers(8, 2).requires_grad_(), numbers(2, 8).requires_grad_(), numbers(20, 8)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused(x, phi, psi, weight, None)
    assert sum(size for size in saved.values() if size > weight.nbytes) == x.nbytes + 300 * 2 * 8
