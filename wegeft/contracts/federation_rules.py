"""The closed sets of a federation: how sites are drawn, how their updates are put together, and what guards against hostile ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from wegeft.contracts.job_sections import Frozen

SiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$")]
Positive = Annotated[float, Field(gt=0, le=1e12)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10_000)]


def _named(value: object) -> object:
    """Let ``rule: stack`` stand for ``rule: {name: stack}``."""
    return {"name": value} if isinstance(value, str) else value


class FractionSampling(Frozen):
    """A fixed share of the sites, drawn anew each round."""

    name: Literal["fraction"] = "fraction"
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the sites that are asked; never fewer than min_sites."""


class PoissonSampling(Frozen):
    """Each site by its own throw of a coin, as amplification by sub-sampling needs it."""

    name: Literal["poisson"] = "poisson"
    rate: Annotated[float, Field(gt=0, le=1)]
    """Chance of each site; a round that draws fewer than min_sites fails, and the next one draws again."""


Sampling = Annotated[FractionSampling | PoissonSampling, Field(discriminator="name"), BeforeValidator(_named)]


class Synchronous(Frozen):
    """Sites start together, and a version is made when the round closes."""

    name: Literal["synchronous"] = "synchronous"


class Buffered(Frozen):
    """Sites start from the newest version when they are ready, and every few updates make the next one (FedBuff: Nguyen et al., 2022)."""

    name: Literal["buffered"] = "buffered"
    buffer_size: Count
    """Updates that make a version, each of another site; at most min_sites."""
    max_staleness: Annotated[int, Field(ge=0, le=10_000)] = 10
    """Versions that may have come out since the one that an update started from; beyond, it is refused as `too_stale`."""


Mode = Annotated[Synchronous | Buffered, Field(discriminator="name"), BeforeValidator(_named)]


def staleness_weight(staleness: int) -> float:
    """Return what an update counts that started so many versions ago: 1/√(1 + staleness), as in FedBuff."""
    return float((1 + staleness) ** -0.5)


class GeneratorExact(Frozen):
    """The exact mean of the generators: the mean of aligned factors, and what it misses as a frozen second generator."""

    name: Literal["generator_exact"] = "generator_exact"
    residual_rank_factor: Annotated[int, Field(ge=1, le=64)] = 4
    """Rank of the residual at most, in multiples of the job's rank."""
    energy: Annotated[float, Field(gt=0, le=1)] = 0.999
    """Share of the residual's energy to keep below that cap; what is cut is carried over into the next round."""


class GeneratorTruncate(Frozen):
    """The exact mean, cut to the job's rank, in the gauge nearest to the old pair's."""

    name: Literal["generator_truncate"] = "generator_truncate"


class FactorMean(Frozen):
    """The mean of each factor (FedIT); misses the covariance of the factors."""

    name: Literal["factor_mean"] = "factor_mean"
    align: bool = True
    """Bring every pair into the gauge nearest to the old pair's first; without it one hostile gauge can ruin the mean."""


class FreezePsi(Frozen):
    """Sites train and send φ only."""

    name: Literal["freeze_psi"] = "freeze_psi"


class FreezePhi(Frozen):
    """Sites train and send ψ only (FFA)."""

    name: Literal["freeze_phi"] = "freeze_phi"


class Alternate(Frozen):
    """φ in odd rounds, ψ in even ones (RoLoRA)."""

    name: Literal["alternate"] = "alternate"


class Stack(Frozen):
    """All sites' pairs are kept side by side as a frozen generator, and training starts afresh each round (FLoRA)."""

    name: Literal["stack"] = "stack"
    max_rank: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Rank of the frozen generator at most; by default it grows by sites × rank each round."""


class Core(Frozen):
    """Sites train and send the rank×rank core between two fixed factors (Fed-SB)."""

    name: Literal["core"] = "core"


Rule = Annotated[
    GeneratorExact | GeneratorTruncate | FactorMean | FreezePsi | FreezePhi | Alternate | Stack | Core,
    Field(discriminator="name"),
    BeforeValidator(_named),
]

PRODUCT_RULES = frozenset({"generator_exact", "generator_truncate", "stack"})
"""Rules that work on the generators themselves, whatever their factors and ranks."""


def is_linear(rule: Rule) -> bool:
    """Return whether the aggregate is a fixed linear function of what sites send, so that sums of masked or noisy updates would do."""
    match rule:
        case FreezePsi() | FreezePhi() | Alternate() | Core():
            return True
        case FactorMean():
            return not rule.align
        case GeneratorExact() | GeneratorTruncate() | Stack():
            return False


def has_fixed_gauge(rule: Rule) -> bool:
    """Return whether factors keep their coordinates: a site's start and the next version are in one gauge, and nothing is kept elsewhere.

    Gradients of factors, as control variates are, mean something from round to round only then.
    """
    match rule:
        case FreezePsi() | FreezePhi() | Alternate() | Core():
            return True
        case FactorMean():
            return not rule.align
        case GeneratorExact() | GeneratorTruncate() | Stack():
            return False


def sent_parts(rule: Rule, round_number: int) -> tuple[str, ...]:
    """Return what sites train and send for each generator in a round: of ``phi``, ``psi`` and ``core``."""
    match rule:
        case FreezePsi():
            return ("phi",)
        case FreezePhi():
            return ("psi",)
        case Alternate():
            return ("phi",) if round_number % 2 else ("psi",)
        case Core():
            return ("core",)
        case GeneratorExact() | GeneratorTruncate() | FactorMean() | Stack():
            return ("phi", "psi")


class FedAvg(Frozen):
    """Take the aggregate as it is."""

    name: Literal["fedavg"] = "fedavg"


class FedAvgM(Frozen):
    """Momentum on the server (Hsu et al., 2019)."""

    name: Literal["fedavgm"] = "fedavgm"
    server_learning_rate: Positive = 1.0
    """Size of a step."""
    server_momentum: Decay = 0.0
    """Share of the last step that goes into the next."""


class FedAdam(Frozen):
    """Adam on the server (Reddi et al., 2021)."""

    name: Literal["fedadam"] = "fedadam"
    eta: Positive = 0.1
    """Size of a step."""
    beta_1: Decay = 0.9
    """Decay of the first moment."""
    beta_2: Decay = 0.99
    """Decay of the second moment."""
    tau: Positive = 1e-3
    """Added to the root of the second moment."""


class FedYogi(Frozen):
    """Yogi on the server (Reddi et al., 2021)."""

    name: Literal["fedyogi"] = "fedyogi"
    eta: Positive = 0.01
    """Size of a step."""
    beta_1: Decay = 0.9
    """Decay of the first moment."""
    beta_2: Decay = 0.99
    """Decay of the second moment."""
    tau: Positive = 1e-3
    """Added to the root of the second moment."""


class FedAdagrad(Frozen):
    """Adagrad on the server (Reddi et al., 2021)."""

    name: Literal["fedadagrad"] = "fedadagrad"
    eta: Positive = 0.1
    """Size of a step."""
    tau: Positive = 1e-3
    """Added to the root of the sum of squares."""


ServerOptimiser = Annotated[FedAvg | FedAvgM | FedAdam | FedYogi | FedAdagrad, Field(discriminator="name"), BeforeValidator(_named)]


class NoDefence(Frozen):
    """Every update that passes the gate counts by its number of examples."""

    name: Literal["none"] = "none"


class NormClip(Frozen):
    """Updates longer than a bound are shortened to it."""

    name: Literal["norm_clip"] = "norm_clip"
    max_norm: Positive | None = None
    """The bound, a Frobenius norm; by default the median of the round's norms."""


class Krum(Frozen):
    """The one update that is nearest to the others (Blanchard et al., 2017)."""

    name: Literal["krum"] = "krum"
    malicious: Annotated[int, Field(ge=0, le=1000)]
    """Hostile sites to withstand; needs min_sites ≥ 2·malicious + 3."""


class MultiKrum(Frozen):
    """The plain mean of the updates that are nearest to the others."""

    name: Literal["multi_krum"] = "multi_krum"
    malicious: Annotated[int, Field(ge=0, le=1000)]
    """Hostile sites to withstand; needs min_sites ≥ 2·malicious + 3."""
    keep: Count | None = None
    """Updates to keep; at most, and by default, sites − malicious − 2."""


class GeometricMedian(Frozen):
    """The point with the least sum of distances to all updates, by smoothed Weiszfeld steps (RFA: Pillutla et al., 2022)."""

    name: Literal["geometric_median"] = "geometric_median"
    steps: Annotated[int, Field(ge=1, le=1000)] = 100
    """Steps at most."""
    smoothing: Positive = 1e-6
    """Distances below this share of the largest norm count as this much."""


class FLTrust(Frozen):
    """Updates count by their cosine to a trusted site's, at its norm (Cao et al., 2021)."""

    name: Literal["fltrust"] = "fltrust"
    root: SiteName
    """The trusted site; without its update the round fails."""


class CoordinateMedian(Frozen):
    """The median of each entry of the generator."""

    name: Literal["coordinate_median"] = "coordinate_median"


class TrimmedMean(Frozen):
    """The mean of each entry of the generator without the largest and smallest values."""

    name: Literal["trimmed_mean"] = "trimmed_mean"
    beta: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share that is cut off at each end."""


class Bulyan(Frozen):
    """Repeated Krum, then a trimmed mean around the median of each entry (El Mhamdi et al., 2018)."""

    name: Literal["bulyan"] = "bulyan"
    malicious: Annotated[int, Field(ge=0, le=1000)]
    """Hostile sites to withstand; needs min_sites ≥ 4·malicious + 3."""


Defence = Annotated[
    NoDefence | NormClip | Krum | MultiKrum | GeometricMedian | FLTrust | CoordinateMedian | TrimmedMean | Bulyan,
    Field(discriminator="name"),
    BeforeValidator(_named),
]

ENTRYWISE_DEFENCES = frozenset({"coordinate_median", "trimmed_mean", "bulyan"})
"""Defences that look at each entry of the generator, and so give a generator of their own instead of weights."""
RESCALING_DEFENCES = frozenset({"norm_clip", "fltrust"})
"""Defences that change the length of single updates."""


def least_sites(defence: Defence) -> int:
    """Return how many updates a defence needs to keep its promise."""
    match defence:
        case Krum() | MultiKrum():
            return 2 * defence.malicious + 3
        case Bulyan():
            return 4 * defence.malicious + 3
        case TrimmedMean():
            return next(count for count in range(3, 1_000_000) if int(defence.beta * count) >= 1)
        case CoordinateMedian() | GeometricMedian():
            return 3
        case FLTrust():
            return 2
        case NoDefence() | NormClip():
            return 1
