"""The ``federation:`` section of a job: rounds, when they close, and how what the sites send becomes one generator."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wegeft.contracts.federation_rules import (
    ENTRYWISE_DEFENCES,
    PRODUCT_RULES,
    RESCALING_DEFENCES,
    Buffered,
    Count,
    Defence,
    FactorMean,
    FedAvg,
    FractionSampling,
    GeneratorExact,
    Mode,
    MultiKrum,
    NoDefence,
    Positive,
    Rule,
    Sampling,
    ServerOptimiser,
    SiteName,
    Synchronous,
    has_fixed_gauge,
    least_sites,
)
from wegeft.contracts.job_problems import Clash, refuse_clashes
from wegeft.contracts.job_sections import Duration, Frozen, PathText
from wegeft.contracts.wire import Wire

_LINEAR_IN_ONE_FACTOR = frozenset({"freeze_psi", "freeze_phi", "alternate", "core"})


class StartSpec(Frozen):
    """The adapter that a federation begins with, untrained or not."""

    config: PathText
    """`adapter_config.json`, relative to the job file, or `sha256:…` of one that the server already has."""
    weights: PathText
    """`adapter_model.safetensors`, likewise; its generators have the job's rank and alpha."""


class FederationSpec(Frozen):
    """How a job is trained by sites that keep their data."""

    rounds: Count = 10
    """Rounds to commit; each publishes a version."""
    mode: Mode = Synchronous()
    """When a version is made: `synchronous` rounds, or `buffered`, from every few updates, so that slow sites hold nobody up."""
    min_sites: Count = 2
    """Accepted updates without which a round is not closed (quorum)."""
    target_sites: Count | None = None
    """Sites to ask at most in a round; more than min_sites leaves room for some to drop out. By default all that are drawn."""
    grace: Duration = "60s"
    """How long a round waits for the others once it has its quorum."""
    deadline: Duration = "1h"
    """How long a round waits at all; without a quorum it then fails."""
    max_failed_rounds: Annotated[int, Field(ge=0, le=1000)] = 3
    """Rounds that may fail one after the other before the job does."""
    sampling: Sampling = FractionSampling()
    """How the sites of a round are drawn: `fraction` or `poisson`."""
    rule: Rule = GeneratorExact()
    """How updates become one generator."""
    server_optimizer: ServerOptimiser = FedAvg()
    """What the server makes of the aggregate: `fedavg`, `fedavgm`, `fedadam`, `fedyogi` or `fedadagrad`."""
    defence: Defence = NoDefence()
    """What guards the aggregate against hostile updates."""
    max_examples: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1_000_000
    """Weight that one site can have at most, in examples."""
    max_update_norm: Positive = 1e3
    """Largest Frobenius norm of a site's update, over all generators; longer ones are refused."""
    proximal_mu: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    """FedProx: sites add `proximal_mu`/2·‖θ − θ_start‖² over all that they train to their loss; 0 leaves it out."""
    site_optimizer: Literal["adamw", "scaffold"] = "adamw"
    """Sites' steps: the job's AdamW, or `scaffold`, plain gradient steps that control variates correct (Karimireddy et al., 2020)."""
    site_ranks: Annotated[dict[SiteName, Annotated[int, Field(ge=1, le=4096)]], Field(max_length=10_000)] = Field(default_factory=dict)
    """Ranks of sites that cannot train the job's rank; at most the job's."""
    wire: Wire = "fp32"
    """Numbers in which updates travel to the service; what `bf16` and `int8` cut off, a site adds to its next update."""
    start: StartSpec | None = None
    """Adapter to begin with; by default `wgctl submit` makes an untrained one from the base model and the job's seed."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        refuse_clashes(
            [*self._site_clashes(), *self._defence_clashes(), *self._rule_clashes(), *self._scaffold_clashes(), *self._mode_clashes()]
        )
        return self

    def _site_clashes(self) -> list[Clash]:
        clashes = []
        if self.target_sites is not None and self.target_sites < self.min_sites:
            clashes.append(Clash(path="target_sites", message=f"must be min_sites ({self.min_sites}) or more"))
        if self.target_sites is not None and self.sampling.name == "poisson":
            message = "cannot bound poisson sampling, where each site is drawn by itself"
            clashes.append(Clash(path="target_sites", message=message, hint="lower the rate"))
        needed = least_sites(self.defence)
        if self.min_sites < needed:
            message = f"must be {needed} or more for {self.defence.name}"
            clashes.append(Clash(path="min_sites", message=message, hint="with fewer sites the defence promises nothing"))
        if isinstance(self.defence, MultiKrum) and self.defence.keep is not None:
            least, name = (self.mode.buffer_size, "buffer_size") if isinstance(self.mode, Buffered) else (self.min_sites, "min_sites")
            most = least - self.defence.malicious - 2
            if self.defence.keep > most >= 1:
                clashes.append(Clash(path="defence.keep", message=f"must be {name} − malicious − 2 ({most}) or less"))
        return clashes

    def _defence_clashes(self) -> list[Clash]:
        name, rule = self.defence.name, self.rule.name
        if name in ENTRYWISE_DEFENCES and rule not in ("generator_exact", "generator_truncate"):
            message = f"{name} gives a generator, not factors, so {rule} cannot follow it"
            return [Clash(path="defence", message=message, hint="rule: generator_exact or generator_truncate")]
        if name != "none" and isinstance(self.rule, FactorMean) and not self.rule.align:
            message = f"{name} sees generators, and without alignment it is their factors that decide: one hostile gauge ruins the mean"
            return [Clash(path="rule.align", message=message, hint="align: true, or rule: generator_exact")]
        if name in RESCALING_DEFENCES and rule not in PRODUCT_RULES | _LINEAR_IN_ONE_FACTOR:
            message = f"{name} changes the length of updates, which has no meaning for the factors that {rule} averages"
            return [Clash(path="defence", message=message, hint="rule: generator_exact")]
        return []

    def _rule_clashes(self) -> list[Clash]:
        clashes = []
        if self.rule.name == "stack" and self.server_optimizer.name != "fedavg":
            message = "stack starts afresh each round and leaves nothing for an optimizer to act on"
            clashes.append(Clash(path="server_optimizer", message=message, hint="fedavg, or another rule"))
        if self.site_ranks and self.rule.name not in PRODUCT_RULES:
            message = f"{self.rule.name} averages factors, which must have one rank"
            clashes.append(Clash(path="site_ranks", message=message, hint="rule: generator_exact, generator_truncate or stack"))
        return clashes

    def _scaffold_clashes(self) -> list[Clash]:
        if self.site_optimizer != "scaffold":
            return []
        clashes = []
        if not has_fixed_gauge(self.rule):
            message = f"scaffold's control variates are gradients of factors, whose coordinates {self.rule.name} changes"
            hint = "rule: {name: factor_mean, align: false}, freeze_psi, freeze_phi, alternate or core"
            clashes.append(Clash(path="rule", message=message, hint=hint))
        if self.defence.name != "none":
            message = f"{self.defence.name} guards updates alone, and scaffold's control variates would go past it"
            clashes.append(Clash(path="defence", message=message, hint="leave it out, or site_optimizer: adamw"))
        if self.proximal_mu:
            message = "the proximal term would be taken for a gradient of the site's rows, which scaffold's control variates are"
            clashes.append(Clash(path="proximal_mu", message=message, hint="one of the two"))
        return clashes

    def _mode_clashes(self) -> list[Clash]:
        if not isinstance(self.mode, Buffered):
            return []
        clashes, size, name = [], self.mode.buffer_size, self.defence.name
        if size > self.min_sites:
            message = f"must be min_sites ({self.min_sites}) or less, as a site has one update at a time in the buffer"
            clashes.append(Clash(path="mode.buffer_size", message=message))
        if size < (needed := least_sites(self.defence)):
            clashes.append(Clash(path="mode.buffer_size", message=f"must be {needed} or more for {name}"))
        if self.rule.name == "alternate":
            message = "sites that started from different versions would send different factors"
            clashes.append(Clash(path="rule", message=message, hint="freeze_psi, freeze_phi, or another rule"))
        if name in ENTRYWISE_DEFENCES | {"fltrust"}:
            why = "needs one site's update in each version" if name == "fltrust" else "gives no weights that staleness could lessen"
            clashes.append(Clash(path="defence", message=f"{name} {why}", hint="krum, multi_krum, geometric_median or norm_clip"))
        if self.site_optimizer == "scaffold":
            message = "scaffold's control variates are of one version for all sites"
            clashes.append(Clash(path="site_optimizer", message=message, hint="adamw, or mode: synchronous"))
        return clashes
