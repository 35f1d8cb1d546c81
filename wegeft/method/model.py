"""The tuner: what PEFT calls to put WeGeFT into a model, take it out, and move its weights to and from files."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, get_quantization_kwargs
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors, Problem
from wegeft.method.combination import Combination, Part, combine
from wegeft.method.config import WeGeFTConfig
from wegeft.method.generator import Generator
from wegeft.method.layer import BASE_ROWS, WeGeFTLinear
from wegeft.method.shared_input import SharedInput, sibling_names
from wegeft.method.sharing import Group, plan_groups
from wegeft.method.targets import is_all_linear, named_layers
from wegeft.method.weights import GeneratorWeights

_STORE = "wegeft_generators"


class WeGeFTModel(BaseTuner):  # type: ignore[misc] # PEFT is untyped
    """Holds each adapter's generators once and wraps the layers that share them.

    In files a generator is ``base_model.wegeft_generators.<group>.phi`` (width×rank) and ``….psi`` (rank×width), where <group> is the
    key of ``sharing.Group``; which layers use it follows from the configuration, never from the order of traversal.
    """

    prefix = "wegeft_"
    tuner_layer_cls = WeGeFTLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    # It does, but PEFT's own refusal of direct injection would not say what to do instead; __init__ refuses it.
    uses_shared_state = False

    wegeft_generators: nn.ModuleDict
    """By adapter, then by group with ``/`` for ``.``, which torch does not allow in names."""
    # BaseTuner's, which nn.Module's __getattr__ would hide from the type checker.
    model: nn.Module
    peft_config: dict[str, WeGeFTConfig]

    def __init__(self, model: nn.Module, peft_config: PeftConfig | dict[str, PeftConfig], adapter_name: str, **options: Any) -> None:
        if isinstance(peft_config, PeftConfig):
            # Direct injection keeps the model and drops the tuner, and with it the generators that the layers share.
            raise InvalidAdapterConfig(
                "the generators are shared by many layers, so they cannot be injected into a model by itself",
                path="peft_type",
                value=peft_config.peft_type,
                hint="instead of AutoModel….from_pretrained(adapter) or model.load_adapter(adapter) use "
                "AutoPeftModel….from_pretrained(adapter) or PeftModel.from_pretrained(model, adapter); instead of "
                "model.add_adapter(config) use get_peft_model(model, config); or convert the adapter: wgctl adapters export",
            )
        super().__init__(model, peft_config, adapter_name, **options)

    def _pre_injection_hook(self, model: nn.Module, config: WeGeFTConfig, adapter_name: str) -> None:  # noqa: ARG002 # PEFT's signature
        self.wegeft_generators = nn.ModuleDict()
        self.shared_input = SharedInput()
        self.plans: dict[str, dict[str, Group]] = {}

    def _prepare_model(self, peft_config: WeGeFTConfig, model: nn.Module) -> None:
        """Plan everything and refuse what cannot be done, while the model is still untouched."""
        adapter_name = self._name_of(peft_config)
        groups = plan_groups(model, peft_config)
        plan = {name: group for group in groups for name in group.members}
        if adapter_name in {group.key for group in groups}:
            raise InvalidAdapterConfig("an adapter cannot be named like one of its generators", path="adapter_name", value=adapter_name)
        if peft_config.weight_dropout:
            _check_weights_are_floats(model, plan)
        if is_all_linear(peft_config.target_modules):
            peft_config.target_modules = set(plan)
        self.plans[adapter_name] = plan
        self.wegeft_generators[adapter_name] = nn.ModuleDict()

    def _name_of(self, config: WeGeFTConfig) -> str:
        name: str = next(name for name, other in self.peft_config.items() if other is config)
        return name

    def _check_target_module_exists(self, peft_config: WeGeFTConfig, key: str) -> object:
        if key in self.plans[self._name_of(peft_config)]:
            return True
        return check_target_module_exists(peft_config, key) and False

    def _create_and_replace(
        self,
        peft_config: WeGeFTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: object,
    ) -> None:
        if not isinstance(target, WeGeFTLinear):
            layer = WeGeFTLinear(target, current_key, self.shared_input, **get_quantization_kwargs(self.model))
            self._replace_module(parent, target_name, layer, target)
            target = layer
        group = self.plans[adapter_name][current_key]
        store = self.generators_of(adapter_name)
        key = _encoded(group.key)
        if key not in store:
            store[key] = GeneratorWeights(group, peft_config, _float_weight(target.get_base_layer()))
        target.wegeft_generators[adapter_name] = store[key]

    def generators_of(self, adapter_name: str) -> nn.ModuleDict:
        """Return an adapter's ``GeneratorWeights`` by group, with ``/`` for ``.``; raises ``KeyError`` if there is no such adapter."""
        store = self.wegeft_generators[adapter_name]
        if not isinstance(store, nn.ModuleDict):
            raise TypeError(f"not a store of generators: {type(store).__name__}")
        return store

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Wrap the planned layers, then tell those that read the same input of each other. See ``BaseTuner.inject_adapter``."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = {layer.name: layer for layer in model.modules() if isinstance(layer, WeGeFTLinear)}
        for name, layer in layers.items():
            object.__setattr__(layer, "siblings", {other: layers[other] for other in sibling_names(name, layers)})

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter with its generators; adding one of the same name later starts afresh. Raises ``ValueError`` if merged."""
        super().delete_adapter(adapter_name)
        del self.wegeft_generators[adapter_name]
        del self.plans[adapter_name]

    def generators(self, adapter_name: str) -> dict[str, Generator[Tensor]]:
        """Return an adapter's generators by group, detached, for the algebra of ``wegeft.method.generator``; they share its memory."""
        return {
            _decoded(key): Generator(phi=weights.phi.detach(), psi=weights.psi.detach(), scale=weights.scaling)
            for key, weights in self.generators_of(adapter_name).items()
            if isinstance(weights, GeneratorWeights)
        }

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: Combination = "cat",
        svd_rank: int | None = None,
    ) -> None:
        """Add the adapter ``Σ wᵢ Mᵢ``, which is not made active: exactly (``cat``), or cut to ``svd_rank`` with the least error (``svd``).

        Raises ``InvalidAdapterConfig`` if the name is taken, an adapter is unknown, the weights are not as many, or the adapters differ in
        transform, sharing, or modules to save; the model is then unchanged.
        """
        unknown = sorted(set(adapters) - set(self.peft_config))
        if unknown or not adapters or adapter_name in self.peft_config or len(weights) != len(adapters):
            problem = f"no such adapter: {', '.join(unknown)}" if unknown else "needs a new name, adapters, and a weight for each"
            raise InvalidAdapterConfig(f"add_weighted_adapter: {problem}")
        parts = [
            Part(
                config=self.peft_config[name],
                generators=self.generators(name),
                groups={group.key: group for group in self.plans[name].values()},
                weight=weight,
            )
            for name, weight in zip(adapters, weights, strict=True)
        ]
        config, combined = combine(parts, self.model, combination_type, svd_rank)
        self.peft_config[adapter_name] = config
        self.inject_adapter(self.model, adapter_name)
        for key, module in self.generators_of(adapter_name).items():
            if isinstance(module, GeneratorWeights):
                module.take(combined[_decoded(key)])

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False, keep_copy: bool = False) -> None:
        """Merge adapters, as PEFT does; ``keep_copy`` keeps the old weights so that ``unmerge_adapter`` is exact to the bit."""
        self._check_merge_allowed()
        for layer in self._layers():
            layer.merge(safe_merge=safe_merge, adapter_names=adapter_names, keep_copy=keep_copy)

    def _check_merge_allowed(self) -> None:
        owners: dict[int, list[str]] = {}
        for name, module in self.model.named_modules(remove_duplicate=False):
            weight = module._parameters.get("weight")  # noqa: SLF001 # without triggering properties
            if weight is not None:
                owners.setdefault(id(weight), []).append(name)
        for layer in self._layers():
            names = owners.get(id(getattr(layer.get_base_layer(), "weight", None)), [])
            if len(names) > 1:
                others = ", ".join(name for name in names if layer.name not in name)
                raise InvalidAdapterConfig(
                    f"merging into {layer.name} would change {others} too: they share one weight",
                    path=layer.name,
                    hint="untie the weights first",
                )

    def _layers(self) -> Iterator[WeGeFTLinear]:
        return (module for module in self.model.modules() if isinstance(module, WeGeFTLinear))

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            for weights in self.generators_of(adapter_name).values():
                if weights.phi.dtype in {torch.float16, torch.bfloat16}:
                    weights.float()

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: object, **kwargs: Any) -> Iterator[None]:
        """Give every layer the batch's ``adapter_names`` for one forward call, repeated for beams except in an encoder."""
        adapter_names = kwargs.get("adapter_names")
        if adapter_names is None:
            yield
            return
        self._check_adapter_names(adapter_names)
        beams = kwargs.get("num_beams") or 1
        get_encoder = getattr(self.model, "get_encoder", None)
        encoder = get_encoder() if beams > 1 and callable(get_encoder) else None
        unrepeated = set(encoder.modules()) if isinstance(encoder, nn.Module) and encoder is not self.model else set()
        handles = []
        for module in self.modules():
            if isinstance(module, WeGeFTLinear | AuxiliaryTrainingWrapper):
                names = adapter_names if module in unrepeated else [name for name in adapter_names for _ in range(beams)]
                handles.append(module.register_forward_pre_hook(partial(_with_adapter_names, names), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_adapter_names(self, adapter_names: list[str]) -> None:
        if self.training:
            raise InvalidAdapterConfig("adapter_names cannot be given while training", path="adapter_names", hint="call eval() first")
        unknown = sorted(set(adapter_names) - {BASE_ROWS} - set(self.peft_config))
        if unknown:
            raise InvalidAdapterConfig(f"no such adapter: {', '.join(unknown)}", path="adapter_names")

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        head, store, tail = key.partition(f"{_STORE}.{adapter_name}.")
        if not store or (head and not head.endswith(".")):
            return str(super()._remove_adapter_name_from_key(key, adapter_name))
        return f"{head}{_STORE}.{_decoded(tail)}"

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: WeGeFTConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        expected = {
            cls._remove_adapter_name_from_key(key, adapter_name): tensor.shape
            for key, tensor in model.state_dict().items()
            if f"{_STORE}.{adapter_name}." in key
        }
        _check_tensors({key: tensor for key, tensor in state_dict.items() if f"{_STORE}." in key}, expected)
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        return remapped


def _check_tensors(found: dict[str, Tensor], expected: dict[str, torch.Size]) -> None:
    """Raise ``InvalidTensors`` unless every generator of the configuration is there, in shape and finite, and none besides."""
    missing, surplus = expected.keys() - found.keys(), found.keys() - expected.keys()
    problems = [Problem(path=key, message="is missing from the adapter file") for key in sorted(missing)]
    problems += [Problem(path=key, message="belongs to no generator of the configuration") for key in sorted(surplus)]
    for key in sorted(expected.keys() & found.keys()):
        shape = tuple(found[key].shape)
        if shape != tuple(expected[key]):
            problems.append(Problem(path=key, message=f"must have shape {tuple(expected[key])}", value=str(shape)))
        elif not torch.isfinite(found[key]).all():
            problems.append(Problem(path=key, message="holds numbers that are not finite"))
    if problems:
        raise InvalidTensors("the adapter's tensors do not fit its configuration and the base model", problems=problems)


def _check_weights_are_floats(model: nn.Module, names: Collection[str]) -> None:
    problems = [
        Problem(path=name, message="weight_dropout reads the weight, which is quantised here", hint="set weight_dropout to 0")
        for name, module in named_layers(model)
        if name in names and not (isinstance(weight := getattr(module, "weight", None), Tensor) and weight.is_floating_point())
    ]
    if problems:
        raise InvalidAdapterConfig("weight_dropout cannot be used with this base model", problems=problems)


def _with_adapter_names(
    names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    del module
    return args, {**kwargs, "adapter_names": names}


def _float_weight(layer: nn.Module) -> Tensor | None:
    weight = getattr(layer, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def _encoded(key: str) -> str:
    return key.replace(".", "/")


def _decoded(key: str) -> str:
    return key.replace("/", ".")
