"""The ``adapter_config.json`` of PEFT's own methods that a version may hold, and the tensors that go with each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from hub.published_fields import Alpha, ModuleName, Number, Probability, PublishedBaseline, Rank, Size
from hub.tensor_layout import layout, layout_of_sets

Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
RankPattern = dict[ModuleName, Rank] | None
AlphaPattern = dict[ModuleName, Alpha] | None


class Lora(PublishedBaseline):
    """LoRA, and what is LoRA with a flag."""

    layout = layout({"lora_A.weight": ("rank", "in"), "lora_B.weight": ("out", "rank")})
    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Alpha
    lora_dropout: Probability = 0.0
    init_lora_weights: Literal[True, "gaussian", "pissa"] = True
    use_rslora: bool = False
    use_dora: Literal[False] = False
    rank_pattern: RankPattern = None
    alpha_pattern: AlphaPattern = None
    megatron_core: Literal["megatron.core"] | None = None
    qalora_group_size: Size = 16

    @property
    def method(self) -> str:
        return "pissa" if self.init_lora_weights == "pissa" else "rslora" if self.use_rslora else "lora"


class Dora(Lora):
    """LoRA with a magnitude for each output."""

    layout = layout({"lora_A.weight": ("rank", "in"), "lora_B.weight": ("out", "rank"), "lora_magnitude_vector": ("out",)})
    use_dora: Literal[True]  # type: ignore[assignment] # what makes it another method

    @property
    def method(self) -> str:
        return "dora"


class AdaLora(PublishedBaseline):
    """LoRA as a sum of rank-one terms, some of which were dropped."""

    layout = layout({"lora_A": ("kept", "in"), "lora_B": ("out", "kept"), "lora_E": ("kept", 1)})
    peft_type: Literal["ADALORA"]
    r: Size
    target_r: Rank
    init_r: Rank
    lora_alpha: Alpha
    lora_dropout: Probability = 0.0
    init_lora_weights: Literal[True] = True
    total_step: Size
    tinit: Annotated[int, Field(ge=0)] = 0
    tfinal: Annotated[int, Field(ge=0)] = 0
    deltaT: Size = 1  # noqa: N815 - PEFT's spelling
    beta1: Annotated[float, Field(gt=0, lt=1)]
    beta2: Annotated[float, Field(gt=0, lt=1)]
    orth_reg_weight: Annotated[float, Field(ge=0, le=1e6)]
    rank_pattern: dict[ModuleName, Annotated[list[bool], Field(max_length=65_536)]] | None = None
    megatron_core: Literal["megatron.core"] | None = None
    qalora_group_size: Size = 16

    @property
    def rank(self) -> int:
        return self.target_r

    @property
    def sizes(self) -> Mapping[str, frozenset[int]]:
        counts = {sum(kept) for kept in self.rank_pattern.values()} if self.rank_pattern else {self.init_r}
        return {"kept": frozenset(counts)}


class Vera(PublishedBaseline):
    """Vectors around random matrices, which are stored once."""

    layout = layout(
        {"vera_lambda_b": ("out",), "vera_lambda_d": ("rank",)}, shared={"vera_A": ("rank", "widest_in"), "vera_B": ("widest_out", "rank")}
    )
    peft_type: Literal["VERA"]
    r: Rank
    vera_dropout: Probability = 0.0
    d_initial: Number = 0.1
    projection_prng_key: Seed
    save_projection: Literal[True]


class VbLora(PublishedBaseline):
    """Choices from a bank of vectors, which is stored once."""

    layout = layout(
        {"vblora_logits_A": ("rank", "inputs", "vectors"), "vblora_logits_B": ("outputs", "rank", "vectors")},
        shared={"vblora_vector_bank": ("vectors", "length")},
    )
    peft_type: Literal["VBLORA"]
    r: Rank
    num_vectors: Size
    vector_length: Size
    topk: Annotated[int, Field(ge=1, le=1024)]
    vblora_dropout: Probability = 0.0
    init_logits_std: Number = 0.1
    init_vector_bank_bound: Number = 0.02

    @property
    def sizes(self) -> Mapping[str, frozenset[int]]:
        return {"rank": frozenset({self.r}), "vectors": frozenset({self.num_vectors}), "length": frozenset({self.vector_length})}


class RandLora(PublishedBaseline):
    """Scales of random bases; PEFT stores the bases beside each layer too."""

    layout = layout_of_sets(
        {
            "randlora_lambda": (("rank", "bases"),),
            "randlora_gamma": (("bases", "narrow"),),
            "randlora_A": (("rank", 1, "widest_in"),),
            "randlora_B": (("widest_out", "most_bases", "rank"),),
        },
        sets=(frozenset({"randlora_lambda", "randlora_gamma"}),),
        optional=frozenset({"randlora_A", "randlora_B"}),
        shared={"randlora_A": ("rank", 1, "widest_in"), "randlora_B": ("widest_out", "most_bases", "rank")},
    )
    peft_type: Literal["RANDLORA"]
    r: Rank
    randlora_alpha: Alpha
    randlora_dropout: Probability = 0.0
    projection_prng_key: Seed
    save_projection: Literal[True]


class GraLora(PublishedBaseline):
    """LoRA in blocks."""

    layout = layout({"gralora_A": ("blocks", "in", "rank"), "gralora_B": ("blocks", "rank", "out")})
    peft_type: Literal["GRALORA"]
    r: Rank
    alpha: Alpha
    gralora_k: Size
    gralora_dropout: Probability = 0.0

    @property
    def sizes(self) -> Mapping[str, frozenset[int]]:
        return {"rank": frozenset({self.r}), "blocks": frozenset({self.gralora_k})}


class DeLora(PublishedBaseline):
    """LoRA of bounded strength."""

    layout = layout(
        {"delora_A": ("rank", "in"), "delora_B": ("out", "rank"), "delora_lambda": (1,), "delora_w_norm": ("in",)},
    )
    peft_type: Literal["DELORA"]
    r: Rank
    delora_lambda: Number
    rank_pattern: RankPattern = None


class Hira(PublishedBaseline):
    """A low-rank factor for each entry of the weight."""

    layout = layout({"hira_A": ("rank", "in"), "hira_B": ("out", "rank")})
    peft_type: Literal["HIRA"]
    r: Rank
    hira_dropout: Probability = 0.0
    rank_pattern: RankPattern = None


class Loha(PublishedBaseline):
    """Two low-rank matrices, multiplied entry by entry."""

    layout = layout(
        {"hada_w1_a": ("out", "rank"), "hada_w1_b": ("rank", "in"), "hada_w2_a": ("out", "rank"), "hada_w2_b": ("rank", "in")},
    )
    peft_type: Literal["LOHA"]
    r: Rank
    alpha: Alpha
    rank_pattern: RankPattern = None
    alpha_pattern: AlphaPattern = None


class Lokr(PublishedBaseline):
    """A Kronecker product, of whose factors each is whole or of low rank."""

    layout = layout_of_sets(
        {
            "lokr_w1": (("out_1", "in_1"),),
            "lokr_w1_a": (("out_1", "rank"),),
            "lokr_w1_b": (("rank", "in_1"),),
            "lokr_w2": (("out_2", "in_2"),),
            "lokr_w2_a": (("out_2", "rank"),),
            "lokr_w2_b": (("rank", "in_2"),),
        },
        sets=tuple(
            frozenset({*first, *second})
            for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
            for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
        ),
    )
    peft_type: Literal["LOKR"]
    r: Rank
    alpha: Alpha
    decompose_factor: Annotated[int, Field(ge=-1, le=65_536)] = -1
    rank_pattern: RankPattern = None
    alpha_pattern: AlphaPattern = None


class Miss(PublishedBaseline):
    """One matrix, repeated over the input."""

    layout = layout({"miss_block": ("rank", "out")})
    peft_type: Literal["MISS"]
    r: Rank
    mini_r: Literal[1] = 1
    miss_dropout: Probability = 0.0


class Oft(PublishedBaseline):
    """Rotations in blocks, each as the upper triangle of a skew-symmetric matrix."""

    layout = layout({"oft_R.weight": ("blocks", "triangle")})
    peft_type: Literal["OFT"]
    r: Literal[0] = 0
    oft_block_size: Annotated[int, Field(ge=2, le=65_536)]
    eps: Number = 6e-5
    num_cayley_neumann_terms: Annotated[int, Field(ge=1, le=64)] = 5
    use_cayley_neumann: bool = True

    @property
    def sizes(self) -> Mapping[str, frozenset[int]]:
        return {"triangle": frozenset({self.oft_block_size * (self.oft_block_size - 1) // 2})}


class Boft(PublishedBaseline):
    """Rotations in butterfly blocks, and a scale for each output."""

    layout = layout({"boft_R": ("factors", "blocks", "size", "size"), "boft_s": ("out", 1)})
    peft_type: Literal["BOFT"]
    boft_block_size: Annotated[int, Field(ge=2, le=65_536)]
    boft_n_butterfly_factor: Annotated[int, Field(ge=1, le=16)]

    @property
    def sizes(self) -> Mapping[str, frozenset[int]]:
        return {"factors": frozenset({self.boft_n_butterfly_factor}), "size": frozenset({self.boft_block_size})}


class Hra(PublishedBaseline):
    """A chain of reflections."""

    layout = layout({"hra_u": ("in", "rank")})
    peft_type: Literal["HRA"]
    r: Rank


class Road(PublishedBaseline):
    """Rotations and scales of pairs of outputs."""

    layout = layout({"road_alpha": ("pairs",), "road_theta": ("pairs",)})
    peft_type: Literal["ROAD"]
    group_size: Size
    variant: Literal["road_1"] = "road_1"


class C3a(PublishedBaseline):
    """Circular convolutions in blocks."""

    layout = layout({"c3a_kernel": ("outputs", "inputs", "size")})
    peft_type: Literal["C3A"]
    block_size: Size

    @property
    def sizes(self) -> Mapping[str, frozenset[int]]:
        return {"size": frozenset({self.block_size})}


class FourierFt(PublishedBaseline):
    """A sparse spectrum."""

    layout = layout({"fourierft_spectrum": ("frequencies",)})
    peft_type: Literal["FOURIERFT"]
    n_frequency: Size
    random_loc_seed: Seed
    scaling: Number

    @property
    def sizes(self) -> Mapping[str, frozenset[int]]:
        return {"frequencies": frozenset({self.n_frequency})}


class Ia3(PublishedBaseline):
    """A scale for each output, or for each input of a feed-forward layer."""

    layout = layout_of_sets({"ia3_l": (("out", 1), (1, "in"))}, sets=(frozenset({"ia3_l"}),))
    peft_type: Literal["IA3"]
    feedforward_modules: Annotated[list[ModuleName], Field(max_length=20_000)]
    init_ia3_weights: Literal[True] = True


_KINDS: tuple[type[PublishedBaseline], ...] = (
    Lora, AdaLora, Vera, VbLora, RandLora, GraLora, DeLora, Hira, Loha, Lokr, Miss, Oft, Boft, Hra, Road, C3a, FourierFt, Ia3,
)  # fmt: skip
BASELINES: Mapping[str, type[PublishedBaseline]] = {
    name: kind
    for kind in _KINDS
    for name in kind.model_fields["peft_type"].annotation.__args__  # type: ignore[union-attr] # a Literal
}
"""What a configuration must be, by PEFT's name of its method."""


def kind_of(config: Mapping[str, Any]) -> type[PublishedBaseline] | None:
    """Return what a configuration must be, by its ``peft_type``; None for a method that is not on the list."""
    name = config.get("peft_type")
    kind = BASELINES.get(name) if isinstance(name, str) else None
    return Dora if kind is Lora and config.get("use_dora") is True else kind
