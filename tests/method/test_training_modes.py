"""Training as people run it: checkpointed, compiled, under torch.func, and over several processes."""

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.method.models import adapted, error, gradients, llama, logits, trainable

SHARING = ["type", "width", "layer"]
KINDS, TIED = ("ddp", "fsdp"), ("type", "width")


@pytest.mark.parametrize("tied", SHARING)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(tied: str, reentrant: bool) -> None:
    """The very first step too: what the recomputation keeps must not depend on what earlier passes saw."""
    expected = gradients(adapted(llama(dtype=torch.float64), tied_modules=tied).train())
    model = adapted(llama(dtype=torch.float64), tied_modules=tied).train()
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    for _ in range(2):
        found = gradients(model)
        assert max(error(found[name], expected[name]) for name in expected) < 1e-12


def compiled_gradients(model: nn.Module, backend: str) -> dict[str, Tensor]:
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    return {name.removeprefix("_orig_mod."): gradient for name, gradient in gradients(compiled).items()}


@pytest.mark.parametrize("options", [{}, {"tied_modules": "width"}, {"transform": "output"}, {"weight_dropout": 0.1}])
def test_compiles_into_one_graph(options: dict[str, Any]) -> None:
    model = adapted(llama(layers=1), **options)
    expected = gradients(model)
    found = compiled_gradients(model, "aot_eager")
    assert found.keys() == expected.keys()
    assert max(error(found[name], expected[name]) for name in expected) < 1e-3


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_code_computes_the_same() -> None:
    """In plain instructions: to find out which others a processor has takes torch a dozen compilations, of nothing of ours."""
    plain = {"cpp.vec_isa_ok": False, "compile_threads": 1}
    model = adapted(nn.Sequential(nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 6)), r=2)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    torch.compiler.reset()
    found = []
    for form in (model, torch.compile(model, backend="inductor", fullgraph=True, options=plain)):
        model.zero_grad()
        output = form(x)
        output.pow(2).sum().backward()
        found.append([output.detach(), *(parameter.grad.clone() for parameter in trainable(model).values() if parameter.grad is not None)])
    assert len(found[0]) > 1
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_compiled_transformer_computes_the_same() -> None:
    model = adapted(llama(layers=1))
    expected = gradients(model)
    found = compiled_gradients(model, "inductor")
    assert max(error(found[name], expected[name]) for name in expected) < 1e-3


def test_gradients_of_each_sample_by_torch_func() -> None:
    """What private training asks for: one gradient a row, through the shared generators."""
    model = adapted(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double(), r=2, tied_modules="width")
    parameters = {name: parameter.detach() for name, parameter in trainable(model).items()}
    rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(values: dict[str, Tensor], row: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(model, values, (row[None],))
        return output.pow(2).sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, rows)
    for index, row in enumerate(rows):
        model.zero_grad()
        model(row[None]).pow(2).sum().backward()
        for name, parameter in trainable(model).items():
            torch.testing.assert_close(found[name][index], parameter.grad)


def test_exported_forward_is_plain_operations() -> None:
    model = adapted(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), r=2)
    x = torch.ones(3, 6)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


def steps(model: nn.Module, wrapped: nn.Module, rows: list[Tensor]) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD([parameter for parameter in wrapped.parameters() if parameter.requires_grad], lr=0.05)
    for row in rows:
        optimizer.zero_grad()
        wrapped(input_ids=row).logits.pow(2).mean().backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in trainable(model).items()}


def batches() -> list[Tensor]:
    return list(torch.randint(0, 64, (3, 2, 6), generator=torch.Generator().manual_seed(4)))


def train_on_a_rank(rank: int, folder: str) -> None:
    """Be one of two processes that train together, in each way after the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for kind, tied in product(KINDS, TIED):
        found = train_half(rank, kind, tied)
        if rank == 0:
            torch.save(found, f"{folder}/{kind}-{tied}.pt")
        dist.barrier()
    dist.destroy_process_group()


def train_half(rank: int, kind: str, tied: str) -> dict[str, Tensor]:
    model = adapted(llama(dtype=torch.float64), tied_modules=tied).train()
    rows = [batch[rank : rank + 1] for batch in batches()]
    if kind == "ddp":
        return steps(model, DistributedDataParallel(model), rows)
    for block in model.base_model.model.model.layers:
        fully_shard(block)
    fully_shard(model)
    return {name: value.full_tensor() for name, value in steps(model, model, rows).items()}


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes trained in each way; they start once, for loading torch takes longer than all that they do."""
    folder = tmp_path_factory.mktemp("ranks")
    processes.spawn(train_on_a_rank, (str(folder),), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", TIED)
def test_two_processes_train_as_one(kind: str, tied: str, trained_by_two: Path) -> None:
    """The shared parameters of both ranks, after three steps on half of each batch, are those of one process on all of it."""
    model = adapted(llama(dtype=torch.float64), tied_modules=tied).train()
    before = {name: value.detach().clone() for name, value in trainable(model).items()}
    expected = steps(model, model, batches())
    found = torch.load(trained_by_two / f"{kind}-{tied}.pt")
    assert found.keys() == expected.keys()
    assert max(error(found[name], expected[name]) for name in expected) < 1e-9
    assert max(error(before[name], expected[name]) for name in expected) > 1e-3


def test_averaged_copy_follows() -> None:
    """An exponential moving average is a deep copy whose parameters are written in place."""
    model = adapted(llama())
    average = copy.deepcopy(model)
    with torch.no_grad():
        for mine, theirs in zip(trainable(average).values(), trainable(model).values(), strict=True):
            mine.lerp_(theirs * 3, 0.5)
    twin = adapted(llama())
    with torch.no_grad():
        for parameter in trainable(twin).values():
            parameter.mul_(2)
    assert error(logits(average), logits(twin)) < 1e-5
