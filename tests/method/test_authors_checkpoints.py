"""Adapters of the authors' two code bases compute here what they computed there; their formulas are written down once more."""

import copy
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from tests.method.models import error, llama, logits
from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors, TargetsNotFound, WegeftError
from wegeft.method import import_gift, import_peft_fork

WIDTH = 16
IMAGES = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(3))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj((q @ k.transpose(1, 2)).softmax(-1) @ v)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), nn.ModuleDict({"fc1": nn.Linear(WIDTH, 24), "fc2": nn.Linear(24, WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp["fc2"](self.mlp["fc1"](x).relu())


class VisionTransformer(nn.Module):
    """Layers named as timm names them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def vision_transformer() -> VisionTransformer:
    torch.manual_seed(5)
    return VisionTransformer().eval()


def gift_state(targets: Mapping[str, int], *, rank: int = 3, head: bool = True) -> dict[str, Tensor]:
    numbers = torch.Generator().manual_seed(11)
    state = {f"backbone.head.{part}": torch.randn(shape, generator=numbers) for part, shape in (("weight", (4, WIDTH)), ("bias", (4,)))}
    state = state if head else {}
    for target, width in targets.items():
        state[f"in_projections.{target}.weight"] = torch.randn(rank, width, generator=numbers) * 0.3
        state[f"out_projections.{target}.weight"] = torch.randn(width, rank, generator=numbers) * 0.3
    return state


@torch.no_grad()
def gift_reference(state: Mapping[str, Tensor], layers: Mapping[str, str]) -> nn.Module:
    """Return the wrapper's model in float64: ``ΔW = out_projection(in_projection(W))`` for each layer and its target."""
    model = copy.deepcopy(vision_transformer()).double()
    for name, layer in model.named_modules():
        target = next((target for end, target in layers.items() if name.endswith(f".{end}")), None)
        if target is not None:
            projections = [state[f"{part}_projections.{target}.weight"].double() for part in ("in", "out")]
            layer.weight += linear(linear(layer.weight, projections[0]), projections[1])
    for part in ("weight", "bias"):
        if f"backbone.head.{part}" in state:
            getattr(model.head, part).copy_(state[f"backbone.head.{part}"])
    return model


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(IMAGES.to(next(model.parameters()).dtype))
    return result


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_gift_checkpoints_compute_the_same(tmp_path: Path, suffix: str) -> None:
    state = gift_state({"attn:proj": WIDTH})
    path = tmp_path / f"checkpoint{suffix}"
    if suffix == ".npz":
        np.savez(path, **{key: tensor.numpy() for key, tensor in state.items()})
    else:
        save_file({f"module.{key}": tensor for key, tensor in state.items()}, path)
    report = import_gift(path, vision_transformer(), tmp_path / "out")
    model = PeftModel.from_pretrained(vision_transformer(), tmp_path / "out").eval()
    assert error(answers(model), answers(gift_reference(state, {"attn.proj": "attn:proj"}))) < 1e-5
    assert report.largest_error < 1e-12
    assert sorted(report.errors) == [f"blocks.{index}.attn.proj" for index in range(3)]
    config = model.peft_config["default"]
    assert (config.r, config.wegeft_alpha, config.tied_modules, config.modules_to_save) == (3, 3.0, "type", ["head"])
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert torch.equal(tensors["base_model.wegeft_generators.proj.phi"], state["in_projections.attn:proj.weight"].t())


def test_gift_targets_may_have_other_names_and_share_projections(tmp_path: Path) -> None:
    several = gift_state({"attn:qkv": WIDTH, "mlp:fc2": 24}, head=False)
    shared = gift_state({"shared_projection": WIDTH})
    renamed = {key.replace("head", "classifier").replace("attn:proj", "o"): t for key, t in gift_state({"attn:proj": WIDTH}).items()}
    cases: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str], dict[str, list[str]] | None]] = [
        (several, several, {"attn.qkv": "attn:qkv", "fc2": "mlp:fc2"}, None),
        (shared, shared, dict.fromkeys(("qkv", "proj", "fc1"), "shared_projection"), {"shared_projection": ["qkv", "proj", "fc1"]}),
        (renamed, gift_state({"attn:proj": WIDTH}), {"proj": "attn:proj"}, {"o": ["proj"], "classifier": ["head"]}),
    ]
    for index, (state, meaning, layers, targets) in enumerate(cases):
        save_file(state, tmp_path / f"{index}.safetensors")
        import_gift(tmp_path / f"{index}.safetensors", vision_transformer(), tmp_path / f"out{index}", targets=targets)
        model = PeftModel.from_pretrained(vision_transformer(), tmp_path / f"out{index}").eval()
        assert error(answers(model), answers(gift_reference(meaning, layers))) < 1e-5


def test_gift_files_that_are_not_a_linear_generator_are_refused(tmp_path: Path) -> None:
    good = gift_state({"attn:proj": WIDTH})
    cases: list[tuple[dict[str, Tensor], type[WegeftError], str]] = [
        (good | {"hypernets.attn:proj.mlp.weight": torch.ones(2, 2)}, InvalidTensors, "no part of a linear generator"),
        (good | {"in_projections.attn:proj.bias": torch.ones(3)}, InvalidTensors, "with a bias"),
        ({key: tensor for key, tensor in good.items() if "out_" not in key}, InvalidTensors, "has no partner"),
        (good | {"out_projections.attn:proj.weight": torch.ones(3, WIDTH)}, InvalidTensors, "no common rank and width"),
        (good | {"in_projections.attn:proj.weight": torch.full((3, WIDTH), torch.nan)}, InvalidTensors, "not finite"),
        ({"model.weight": torch.ones(2)}, InvalidTensors, "holds no in_projections"),
        ({"in_projections.attn:proj.weight": torch.ones(3, 4, dtype=torch.int64)}, InvalidTensors, "not floating-point"),
        (gift_state({"attn:o_proj": WIDTH}), TargetsNotFound, "did you mean"),
        (gift_state({"attn:proj": 8}), InvalidAdapterConfig, "needs ψ of shape"),
    ]
    for state, kind, message in cases:
        path = tmp_path / "checkpoint.safetensors"
        save_file(state, path)
        with pytest.raises(kind) as caught:
            import_gift(path, vision_transformer(), tmp_path / "out")
        assert message in str(caught.value)
        path.unlink()
        assert list(tmp_path.iterdir()) == []


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    for name in ("last.pth.tar", "checkpoint.pth", "checkpoint.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(trap))
        with pytest.raises(InvalidTensors, match="never read") as caught:
            import_gift(tmp_path / name, vision_transformer(), tmp_path / "out")
        assert "save_file" in str(caught.value)
    np.savez(tmp_path / "objects.npz", **{"in_projections.attn:proj.weight": np.array([trap], dtype=object)})
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04torn")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    for name in ("objects.npz", "torn.npz", "torn.safetensors", "absent.npz"):
        with pytest.raises(InvalidTensors):
            import_gift(tmp_path / name, vision_transformer(), tmp_path / "out")
    fork = write_fork(tmp_path / "fork", ["q_proj"], None)
    (fork / "adapter_model.safetensors").rename(fork / "adapter_model.bin")
    with pytest.raises(InvalidTensors, match="never read"):
        import_peft_fork(fork, llama(), tmp_path / "out")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out").exists()


LAYER = r"model.layers.\d+."
PUBLISHED = [
    [rf"{LAYER}self_attn.q_proj"],
    [rf"{LAYER}self_attn.k_proj"],
    [rf"{LAYER}self_attn.v_proj"],
    [rf"{LAYER}mlp.up_proj"],
    [rf"{LAYER}mlp.down_proj"],
]
MODULES = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def write_fork(folder: Path, modules: list[str], tied: list[list[str]] | None, **settings: Any) -> Path:
    """Write a folder as the fork's ``save_pretrained`` does: its fields, and each group's tensors under its first layer."""
    folder.mkdir()
    config: dict[str, Any] = {"alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "org/base", "bias": "none"}
    config |= {"fan_in_fan_out": False, "inference_mode": True, "init_wegeft_weights": True, "layers_pattern": None}
    config |= {"layers_to_transform": None, "modules_to_save": None, "peft_type": "WeGeFT", "r": 4, "rank_pattern": {}, "revision": None}
    config |= {"target_modules": modules, "task_type": "CAUSAL_LM", "tied_modules": tied or [[module] for module in modules]}
    config |= {"transform_dim": dict.fromkeys(modules, "input"), "wegeft_alpha": 8, "wegeft_dropout": 0.1} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    numbers = torch.Generator().manual_seed(2)
    tensors = {}
    for name, owner, rank, _ in fork_plan(config):
        if name == owner:
            width = llama().get_submodule(name).in_features
            for part in ("phi", "psi"):
                tensors[f"base_model.model.{name}.wegeft_{part}.weight"] = torch.randn(rank, width, generator=numbers) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def fork_plan(config: Mapping[str, Any]) -> list[tuple[str, str, int, float]]:
    """Return (layer, owner of its generator, rank, scale) in the fork's order of traversal, as its ``model.py`` decides them."""
    origins: dict[str, str] = {}
    plan = []
    for name, layer in llama().named_modules():
        if not isinstance(layer, nn.Linear) or name.rpartition(".")[2] not in config["target_modules"]:
            continue
        key = next(("-".join(ties) for ties in config["tied_modules"] if any(re.match(tie, name) for tie in ties)), name)
        pattern = next((p for p in config["rank_pattern"] if re.match(rf".*\.{p}$", name)), name)
        rank = config["rank_pattern"].get(pattern, config["r"])
        plan.append((name, origins.setdefault(key, name), rank, config["alpha_pattern"].get(pattern, config["wegeft_alpha"]) / rank))
    return plan


@torch.no_grad()
def fork_reference(folder: Path) -> nn.Module:
    """Return the fork's model in float64: ``ΔW = s · (W @ phi.t()) @ psi``."""
    tensors = load_file(folder / "adapter_model.safetensors")
    model = llama().double()
    for name, owner, _, scaling in fork_plan(json.loads((folder / "adapter_config.json").read_text())):
        phi, psi = (tensors[f"base_model.model.{owner}.wegeft_{part}.weight"].double() for part in ("phi", "psi"))
        layer = model.get_submodule(name)
        layer.weight += scaling * (layer.weight @ phi.t()) @ psi
    return model


@pytest.mark.parametrize(
    ("modules", "tied", "settings", "sharing"),
    [
        (MODULES, PUBLISHED, {}, "type"),
        (MODULES, None, {}, "layer"),
        (MODULES, [[rf"{LAYER}self_attn.(q|k|v)_proj", rf"{LAYER}mlp.up_proj"], [rf"{LAYER}mlp.down_proj"]], {}, "width"),
        (MODULES, [[rf"{LAYER}self_attn.q", rf"{LAYER}self_attn.k"]], {}, None),
        (MODULES, [[r"model.layers.0.self_attn"], [rf"{LAYER}self_attn"]], {}, None),
        (MODULES, PUBLISHED, {"rank_pattern": {"down_proj": 2, "q_proj": 6}, "alpha_pattern": {"down_proj": 3, "v_proj": 99}}, "type"),
        (["q_proj"], [[rf"{LAYER}self_attn.q_proj"]], {"r": 3, "wegeft_alpha": 1, "wegeft_dropout": None}, "type"),
    ],
)
def test_adapters_of_the_fork_compute_the_same(
    tmp_path: Path, modules: list[str], tied: list[list[str]] | None, settings: dict[str, Any], sharing: str | None
) -> None:
    fork = write_fork(tmp_path / "fork", modules, tied, **settings)
    report = import_peft_fork(fork, llama(), tmp_path / "out")
    model = PeftModel.from_pretrained(llama(), tmp_path / "out").eval()
    assert error(logits(model), logits(fork_reference(fork))) < 1e-5
    assert report.largest_error < 1e-12
    config = model.peft_config["default"]
    assert config.tied_modules == sharing or (sharing is None and isinstance(config.tied_modules, list))
    assert (config.base_model_name_or_path, config.task_type) == ("org/base", "CAUSAL_LM")
    assert config.weight_dropout == (settings.get("wegeft_dropout", 0.1) or 0)


def test_modules_that_the_fork_trained_in_full_come_along(tmp_path: Path) -> None:
    fork = write_fork(tmp_path / "fork", MODULES, PUBLISHED, modules_to_save=["lm_head"])
    head = torch.randn(64, 32, generator=torch.Generator().manual_seed(8))
    tensors = load_file(fork / "adapter_model.safetensors")
    save_file(tensors | {"base_model.model.lm_head.weight": head}, fork / "adapter_model.safetensors")
    import_peft_fork(fork, llama(), tmp_path / "out")
    expected = fork_reference(fork)
    with torch.no_grad():
        expected.get_output_embeddings().weight.copy_(head)
    assert error(logits(PeftModel.from_pretrained(llama(), tmp_path / "out").eval()), logits(expected)) < 1e-5


def test_folders_that_are_not_the_forks_are_refused(tmp_path: Path) -> None:
    tying = [[rf"{LAYER}self_attn.(q|k)_proj"]]
    settings: list[tuple[dict[str, Any], type[WegeftError], str]] = [
        ({"peft_type": "LORA"}, InvalidAdapterConfig, "not of the authors' fork"),
        ({"transform_dim": {"q_proj": "output"}}, InvalidAdapterConfig, "output form"),
        ({"bias": "all"}, InvalidAdapterConfig, "biases"),
        ({"alpha_pattern": {"q_proj": 1}, "rank_pattern": {"q_proj": 4}}, InvalidAdapterConfig, "differ in alpha / rank"),
    ]
    for index, (chosen, kind, message) in enumerate(settings):
        fork = write_fork(tmp_path / f"fork{index}", ["q_proj", "k_proj"], tying, **chosen)
        with pytest.raises(kind) as caught:
            import_peft_fork(fork, llama(), tmp_path / "out")
        assert message in str(caught.value)
    with pytest.raises(InvalidAdapterConfig, match="no readable"):
        import_peft_fork(tmp_path / "absent", llama(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_that_are_not_those_of_the_groups_are_refused(tmp_path: Path) -> None:
    fork = write_fork(tmp_path / "fork", ["q_proj", "k_proj"], PUBLISHED)
    good = load_file(fork / "adapter_model.safetensors")
    key = "base_model.model.model.layers.{}.self_attn.q_proj.wegeft_{}.weight"
    second = {key.format(1, part): good[key.format(0, part)].clone() for part in ("phi", "psi")}
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({name: tensor for name, tensor in good.items() if "k_proj" not in name}, "must hold φ and ψ"),
        (good | second, "must hold φ and ψ"),
        (good | {key.format(9, "phi"): torch.ones(4, 32)}, "belongs to no target layer"),
        (good | {key.format(0, "phi"): torch.ones(2, 32)}, "no common rank and width"),
        (good | {"base_model.model.model.embed_tokens.weight": torch.ones(65, 32)}, "neither a generator nor of modules_to_save"),
    ]
    for tensors, message in cases:
        save_file(tensors, fork / "adapter_model.safetensors")
        with pytest.raises(InvalidTensors) as caught:
            import_peft_fork(fork, llama(), tmp_path / "out")
        assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
