"""One edited linear layer: a frozen layer and references to the generators that it shares with others."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend, QuantizationBackend, resolve_quantization_backend
from torch import Tensor, nn
from torch.nn.functional import dropout, linear
from transformers.pytorch_utils import Conv1D

from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method.edit import edit_delta, edited_linear
from wegeft.method.merging import Edit, delta_bias, delta_weight, join, unmerge
from wegeft.method.shared_input import SharedInput
from wegeft.method.targets import features_of
from wegeft.method.weights import GeneratorWeights

BASE_ROWS = "__base__"
"""What PEFT calls the rows of a mixed batch that no adapter edits."""


class WeGeFTLinear(nn.Module, BaseTunerLayer):  # type: ignore[misc] # PEFT is untyped
    """A linear layer, quantised or not, whose input or output is edited by the active generators.

    One input-form adapter: ``y = base(x + s·φ(ψx))``; one output-form adapter: ``y = (I + s·φψ) base(x)``, bias included; several:
    ``W' = W (I + ΣMᵢ) + ΣMⱼ W`` over the input and output forms. The frozen weight is read by ``base`` alone, except with weight dropout.
    The generators belong to the tuner; here they are references that ``state_dict`` does not see, and that ``deepcopy`` and pickle keep
    shared.
    """

    adapter_layer_names = ("wegeft_generators",)
    wegeft_generators: nn.ModuleDict
    siblings: dict[str, "WeGeFTLinear"]
    # BaseTunerLayer's, which nn.Module's __getattr__ would hide from the type checker.
    base_layer: Any
    merged: bool
    disable_adapters: bool
    active_adapters: list[str]
    get_base_layer: Callable[[], Any]
    get_base_weight: Callable[[], Tensor]
    set_base_weight: Callable[[Tensor], None]

    def __init__(self, base_layer: nn.Module, name: str, shared_input: SharedInput, **quantization: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = features_of(self.get_base_layer())
        self.quantization_backend = _backend_of(self.get_base_layer(), quantization)
        self.name = name
        self.shared_input = shared_input
        self.merged_adapters: list[str] = []
        self.unmerged_copy: tuple[Tensor, Tensor | None] | None = None
        self._disable_adapters = False
        # Registered, these would appear once a layer in state_dict and parameters; the tuner owns them.
        object.__setattr__(self, "wegeft_generators", nn.ModuleDict())
        object.__setattr__(self, "siblings", {name: self})

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """Return the edited output. ``adapter_names``: one adapter a row of x, ``'__base__'`` for none."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self._base(x, *args, **kwargs)
        if adapter_names is not None:
            return self._forward_mixed(x, adapter_names, *args, **kwargs)
        active = self.active_generators()
        if self.merged or not active:
            return self._base(x, *args, **kwargs)
        if not args and not kwargs and not _is_transformed(x) and self.is_fusible(x, active):
            return self._forward_fused(x, active[0])
        return self._forward_general(x, active, *args, **kwargs)

    def active_generators(self) -> list[GeneratorWeights]:
        """Return the generators of the active adapters that edit this layer, in the order of activation."""
        return [self.generator(name) for name in self.active_adapters if name in self.wegeft_generators]

    def generator(self, adapter_name: str) -> GeneratorWeights:
        """Return the generator that an adapter edits this layer with; raises ``KeyError`` if it does not."""
        generator = self.wegeft_generators[adapter_name]
        if not isinstance(generator, GeneratorWeights):
            raise TypeError(f"not a generator: {type(generator).__name__}")
        return generator

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None, keep_copy: bool = False) -> None:
        """Fold adapters into the weight, as one sum with those already merged: ``W (I + ΣMᵢ) + ΣMⱼ W``.

        ``safe_merge`` raises ``ValueError`` before changing anything if the result is not finite; ``keep_copy`` keeps the old weight so
        that unmerging is exact to the bit. Raises ``InvalidAdapterConfig`` for a quantised layer whose library cannot quantise again.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.wegeft_generators]
        if not names:
            return
        self._check_weight_readable("merge")
        if self.merged:
            names = [*self.merged_adapters, *names]
            self.unmerge()
        weight, bias = self.base_parameters()
        edits = [self._edit(name) for name in names]
        merged = weight + torch.stack([delta_weight(weight, edit) for edit in edits]).sum(0)
        merged_bias = bias
        for change in (delta_bias(bias, edit) for edit in edits if bias is not None):
            merged_bias = merged_bias if change is None or merged_bias is None else merged_bias + change
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"merging {', '.join(names)} into {self.name} gives weights that are not finite")
        if keep_copy:
            self.unmerged_copy = weight, bias
        self._set_base_parameters(merged, merged_bias)
        self.merged_adapters = names

    def unmerge(self) -> None:
        """Take all merged adapters out of the weight: exactly if a copy was kept, else by solving (``merging.unmerge``).

        Raises ``InvalidAdapterConfig`` if the merge was ill-conditioned, mixed input and output forms, or went into quantised weights, and
        no copy was kept.
        """
        if not self.merged:
            return
        if self.unmerged_copy is not None:
            self._set_base_parameters(*self.unmerged_copy)
        else:
            if self.quantization_backend is not None:
                # What was merged was rounded to a few bits, and solving would magnify that.
                hint = "merge with keep_copy=True, or load the base model again"
                raise InvalidAdapterConfig("a merge into quantised weights cannot be undone without a copy", path=self.name, hint=hint)
            edits = [self._edit(name) for name in self.merged_adapters]
            if len({edit.transform for edit in edits}) > 1:
                raise InvalidAdapterConfig(
                    "a merge of input and output forms together cannot be undone without a copy", hint="merge with keep_copy=True"
                )
            self._set_base_parameters(*unmerge(*self.base_parameters(), join(edits), self.get_base_weight().dtype))
        self.unmerged_copy = None
        self.merged_adapters = []

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return ΔW of one adapter in the layout of the layer's weight; the layer must not be merged. Never drops anything."""
        self._check_weight_readable("read the weight of")
        delta = delta_weight(self.base_parameters()[0], self._edit(adapter))
        return delta.t() if self._is_transposed else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Say whether PEFT's ``convert_to_lora`` applies: it changes weights only, so a bias that is edited excludes it."""
        has_bias = getattr(self.get_base_layer(), "bias", None) is not None
        return adapter_name in self.wegeft_generators and not (has_bias and self.generator(adapter_name).transform == "output")

    @torch.no_grad()
    def base_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return copies of the frozen weight as out×in and of the bias, in float32 or better, dequantised if need be."""
        weight = self.get_base_weight()
        weight = weight.t() if self._is_transposed else weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        bias = getattr(self.get_base_layer(), "bias", None)
        return weight.detach().to(dtype, copy=True), None if bias is None else bias.detach().to(dtype, copy=True)

    def _set_base_parameters(self, weight: Tensor, bias: Tensor | None) -> None:
        base = self.get_base_layer()
        weight = weight.t().contiguous() if self._is_transposed else weight
        if self.quantization_backend is None:
            base.weight.data = weight.to(base.weight.dtype)
        else:
            self.set_base_weight(weight)
        if bias is not None:
            base.bias.data = bias.to(base.bias.dtype)

    @property
    def _is_transposed(self) -> bool:
        return isinstance(self.get_base_layer(), Conv1D)

    def _check_weight_readable(self, purpose: str) -> None:
        backend = self.quantization_backend
        if backend is None and isinstance(getattr(self.get_base_layer(), "weight", None), Tensor):
            return
        if backend is None or not backend.supports_merge:
            kind = type(self.get_base_layer()).__name__ if backend is None else backend.backend_name
            raise InvalidAdapterConfig(f"cannot {purpose} {self.name}: {kind} weights cannot be rewritten", path=self.name)

    @torch.no_grad()
    def _edit(self, adapter_name: str) -> Edit:
        generator = self.generator(adapter_name)
        weight = self.get_base_layer().weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        phi, psi = (t.detach().to(weight.device, dtype) for t in (generator.phi, generator.psi))
        return Edit(phi=generator.scaling * phi, psi=psi, transform=generator.transform)

    def _base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        return result

    def is_fusible(self, x: Tensor, active: Sequence[GeneratorWeights]) -> bool:
        """Say whether the fused gradients apply to a call that runs eagerly: one input-form adapter on a plain frozen nn.Linear."""
        base = self.base_layer
        return (
            len(active) == 1
            and active[0].transform == "input"
            and not (self.training and (active[0].weight_dropout or active[0].input_dropout))
            and type(base) is nn.Linear
            and self.quantization_backend is None
            and base.weight.dtype == x.dtype
            and not base.weight.requires_grad
            and (base.bias is None or not base.bias.requires_grad)
            and active[0].psi.device == x.device
            and active[0].width == x.shape[-1]
            and not (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks)  # noqa: SLF001 # a hook must see its call
        )

    def _forward_fused(self, x: Tensor, generator: GeneratorWeights) -> Tensor:
        reading = self.shared_input.find(self.name, x, generator) or self.shared_input.read(self.name, x, self._readers(x, generator))
        edited = reading.edited_input(generator)
        if edited is not None:
            return self._base(edited)
        frozen = (self.base_layer.weight, self.base_layer.bias)
        return edited_linear(reading.x, reading.code(generator), generator.phi, frozen, generator.scaling)

    def _readers(self, x: Tensor, generator: GeneratorWeights) -> dict[str, GeneratorWeights]:
        """Return the generators of the layers that are expected to read x too, in the state that they are in, this one first."""
        readers = {self.name: generator}
        for name, sibling in self.siblings.items():
            active = sibling.active_generators()
            if sibling is not self and not (sibling.merged or sibling.disable_adapters) and sibling.is_fusible(x, active):
                readers[name] = active[0]
        return readers

    def _forward_general(self, x: Tensor, active: Sequence[GeneratorWeights], *args: Any, **kwargs: Any) -> Tensor:
        dropping = [g for g in active if self.training and g.weight_dropout]
        reading = [g for g in active if g.transform == "input" and g not in dropping]
        writing = [g for g in active if g.transform == "output" and g not in dropping]
        edited = x
        for generator in reading:
            edited = edited + self._delta(self._dropped(x, generator), generator)
        result = self._base(edited, *args, **kwargs)
        written = self._base(x, *args, **kwargs) if writing and reading else result
        for generator in writing:
            result = result + self._delta(self._dropped(written, generator), generator)
        for generator in dropping:
            result = result + self._weight_form(x, generator).to(result.dtype)
        return result

    def _delta(self, x: Tensor, generator: GeneratorWeights) -> Tensor:
        return edit_delta(x, generator.phi.to(x.device), generator.psi.to(x.device), generator.scaling)

    def _dropped(self, x: Tensor, generator: GeneratorWeights) -> Tensor:
        return dropout(x, generator.input_dropout) if self.training and generator.input_dropout else x

    def _weight_form(self, x: Tensor, generator: GeneratorWeights) -> Tensor:
        """Return the change of the output with entries of W dropped where φ, or for the output form ψ, reads it; the published dropout."""
        base = self.get_base_layer()
        weight = dropout((base.weight.t() if self._is_transposed else base.weight).to(x.dtype), generator.weight_dropout)
        phi, psi = generator.phi.to(x.device, x.dtype), generator.psi.to(x.device, x.dtype)
        read = self._dropped(x, generator)
        if generator.transform == "input":
            return generator.scaling * linear(linear(read, psi), weight @ phi)
        code = linear(read, psi @ weight, None if base.bias is None else psi @ base.bias.to(x.dtype))
        return generator.scaling * linear(code, phi)

    def _forward_mixed(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        if self.merged:
            raise InvalidAdapterConfig("a mixed batch needs unmerged adapters", path=self.name, hint="call unmerge_adapter() first")
        if len(adapter_names) != x.shape[0]:
            raise InvalidAdapterConfig(f"adapter_names has {len(adapter_names)} entries for a batch of {x.shape[0]}", path="adapter_names")
        rows = {
            name: torch.tensor([i for i, other in enumerate(adapter_names) if other == name], device=x.device)
            for name in dict.fromkeys(adapter_names)
            if name != BASE_ROWS and name in self.wegeft_generators
        }
        result = self._base(self._edit_rows(x, rows, "input"), *args, **kwargs)
        return self._edit_rows(result, rows, "output")

    def _edit_rows(self, x: Tensor, rows: dict[str, Tensor], transform: str) -> Tensor:
        for name, index in rows.items():
            generator = self.generator(name)
            if generator.transform == transform:
                x = x.index_add(0, index, self._delta(x[index], generator))
        return x

    def __repr__(self) -> str:
        return "wegeft." + super().__repr__()


def _is_transformed(x: Tensor) -> bool:
    """Say whether something watches the operations (compiler, tracer, autocast, torch.func), so that they must stay plain ones."""
    return (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x.device.type)
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call] # public, but not in torch's list of exports
        or torch._C._are_functorch_transforms_active()  # noqa: SLF001 # torch.func offers no public question
    )


def _backend_of(base_layer: nn.Module, quantization: dict[str, Any]) -> QuantizationBackend | None:
    try:
        return resolve_quantization_backend(base_layer, **quantization)
    except ValueError:
        # torchao weights loaded without transformers: they can be read through the layer but not quantised again.
        return ForwardOnlyQuantizationBackend("torchao")
