"""How a base model can be adapted: the closed list of methods, and which of a job's options each of them has."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from wegeft.contracts.job_problems import Clash

if TYPE_CHECKING:
    from wegeft.contracts.job_spec import JobSpec


class Method(StrEnum):
    """WeGeFT, or a method of PEFT to compare it with."""

    WEGEFT = "wegeft"
    LORA = "lora"
    RSLORA = "rslora"
    DORA = "dora"
    PISSA = "pissa"
    ADALORA = "adalora"
    VERA = "vera"
    VBLORA = "vblora"
    RANDLORA = "randlora"
    GRALORA = "gralora"
    DELORA = "delora"
    HIRA = "hira"
    LOHA = "loha"
    LOKR = "lokr"
    MISS = "miss"
    OFT = "oft"
    BOFT = "boft"
    HRA = "hra"
    ROAD = "road"
    C3A = "c3a"
    FOURIERFT = "fourierft"
    IA3 = "ia3"


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a method is, and what of a job it takes."""

    title: str
    rank: int | None = None
    """By default; None where the method has no rank."""
    alpha_per_rank: float | None = None
    """By default; None where the method has no alpha."""
    options: frozenset[str] = frozenset()
    """Fields of a job that some methods have and others have not, besides rank and alpha."""


_DROPOUT = frozenset({"dropout"})
_PATTERNS = frozenset({"rank_pattern", "alpha_pattern"})
_BLOCK = frozenset({"block_size"})
_OWN = frozenset({"tied_modules", "transform", "init_weights", "weight_dropout"})

METHODS: dict[Method, Traits] = {
    Method.WEGEFT: Traits(title="generators that many layers share", rank=64, alpha_per_rank=2, options=_OWN | _DROPOUT | _PATTERNS),
    Method.LORA: Traits(title="a low-rank sum for each layer", rank=16, alpha_per_rank=2, options=_DROPOUT | _PATTERNS),
    Method.RSLORA: Traits(title="LoRA scaled by alpha / √rank", rank=16, alpha_per_rank=1, options=_DROPOUT | _PATTERNS),
    Method.DORA: Traits(
        title="LoRA of directions, with a magnitude for each output", rank=16, alpha_per_rank=2, options=_DROPOUT | _PATTERNS
    ),
    Method.PISSA: Traits(title="LoRA that starts from the largest singular vectors", rank=16, alpha_per_rank=1, options=_DROPOUT),
    Method.ADALORA: Traits(title="LoRA that moves rank to where it matters", rank=8, alpha_per_rank=2, options=_DROPOUT),
    Method.VERA: Traits(title="vectors that scale random matrices, shared by all layers", rank=256, options=_DROPOUT),
    Method.VBLORA: Traits(title="LoRA put together from a shared bank of vectors", rank=4, options=_DROPOUT | _BLOCK),
    Method.RANDLORA: Traits(title="scaled sums of random bases, of full rank", rank=32, alpha_per_rank=20, options=_DROPOUT),
    Method.GRALORA: Traits(title="LoRA in two by two blocks", rank=32, alpha_per_rank=2, options=_DROPOUT),
    Method.DELORA: Traits(title="LoRA of bounded strength", rank=32, options=frozenset({"rank_pattern"})),
    Method.HIRA: Traits(title="the weight times a low-rank matrix, entry by entry", rank=32, options=_DROPOUT | {"rank_pattern"}),
    Method.LOHA: Traits(title="two low-rank matrices multiplied entry by entry", rank=16, alpha_per_rank=2, options=_PATTERNS),
    Method.LOKR: Traits(title="a Kronecker product of small matrices", rank=16, alpha_per_rank=2, options=_PATTERNS),
    Method.MISS: Traits(title="one matrix that is repeated over the input", rank=64, options=_DROPOUT),
    Method.OFT: Traits(title="a rotation in blocks", options=_BLOCK),
    Method.BOFT: Traits(title="a rotation in butterfly blocks, and scales", options=_BLOCK),
    Method.HRA: Traits(title="a chain of reflections", rank=8),
    Method.ROAD: Traits(title="rotations of pairs of outputs", options=_BLOCK),
    Method.C3A: Traits(title="circular convolutions in blocks", options=_BLOCK),
    Method.FOURIERFT: Traits(title="a sparse spectrum for each layer"),
    Method.IA3: Traits(title="a scale for each output, or input of a feed-forward layer"),
}
"""Every method, in the order in which lists name them."""


def method_clashes(spec: JobSpec) -> list[Clash]:
    """Return every option in the job that its method does not have, and every value that its method cannot take."""
    traits = METHODS[spec.method]
    given = {name: getattr(spec, name) is not None for name in ("rank", "alpha", *_ALL_OPTIONS)}
    has = traits.options | ({"rank"} if traits.rank else set()) | ({"alpha"} if traits.alpha_per_rank else set())
    clashes = [_refusal(spec.method, name) for name, is_given in given.items() if is_given and name not in has]
    if spec.method is Method.HRA and spec.rank is not None and spec.rank % 2:
        clashes.append(Clash(path="rank", message="reflections come in pairs: hra needs an even rank", involves=frozenset({"method"})))
    if spec.method is Method.GRALORA and spec.rank is not None and spec.rank % 2:
        clashes.append(Clash(path="rank", message="gralora has two by two blocks: it needs an even rank", involves=frozenset({"method"})))
    return clashes


_ALL_OPTIONS = tuple(sorted(frozenset().union(*(traits.options for traits in METHODS.values()))))


def methods_with(option: str) -> tuple[Method, ...]:
    """Return the methods that have an option, ``rank`` and ``alpha`` among them."""
    match option:
        case "rank":
            return tuple(method for method, traits in METHODS.items() if traits.rank)
        case "alpha":
            return tuple(method for method, traits in METHODS.items() if traits.alpha_per_rank)
        case _:
            return tuple(method for method, traits in METHODS.items() if option in traits.options)


def _refusal(method: Method, option: str) -> Clash:
    hint = f"leave it out, or choose {', '.join(methods_with(option))}"
    return Clash(path=option, message=f"method: {method} has no {option}", hint=hint, involves=frozenset({"method"}))
