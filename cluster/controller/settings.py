"""The `controller:` section of the YAML: what each model must keep, within which bounds, and what nodes cost.

controller:
  enabled: true
  models:
    llama: {max_nodes: 12, slo: {ttft_s: 2.0, tpot_s: 0.2}}
  prices: {currency: USD, node_hour: {mi355x: 24.0, mi300x: 12.0}}
"""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from ...deployments.config import Section

Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SloSettings(Section):
    """What clients are promised.

    Attributes:
        ttft_s: to the first token, queue included; None promises nothing.
        tpot_s: per output token after the first; None promises nothing.
        attainment: share of requests that are to be within each.
    """

    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    attainment: Share = 0.99


class ScalingSettings(Section):
    """How one model is scaled.

    Attributes:
        min_nodes, max_nodes: between which its nodes stay, of all types together.
        slo: what clients are promised.
        target_utilisation: of what nodes bring at saturation, what is planned to be used; the rest takes the noise.
        keep_utilisation: nodes are given back only when those that stay are used no more than this.
        backlog_within_s: queued work is to be done in this time.
        min_marginal_efficiency: a node is added only while it is predicted to bring so much of its baseline.
        idle_before_removal_s: load was low for so long before a node is given back; doubles when load comes back.
        provision_s, load_s: that a node and then a model need to start, before either was measured.
        give_up_s: a node that was asked for and has not come for so long counts as failed.
    """

    min_nodes: Annotated[int, Field(ge=0)] = 1
    max_nodes: Annotated[int, Field(ge=1)] = 16
    slo: SloSettings = SloSettings()
    target_utilisation: Share = 0.85
    keep_utilisation: Share = 0.7
    backlog_within_s: Seconds = 300.0
    min_marginal_efficiency: Annotated[float, Field(ge=0, le=1)] = 0.25
    idle_before_removal_s: Seconds = 600.0
    provision_s: Seconds = 300.0
    load_s: Seconds = 120.0
    give_up_s: Seconds = 1200.0

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes ({self.min_nodes}) must not exceed max_nodes ({self.max_nodes})")
        if self.keep_utilisation > self.target_utilisation:
            raise ValueError("keep_utilisation must not exceed target_utilisation, or nodes would come and go")
        return self


class HealthSettings(Section):
    """When a replica counts as sick.

    Attributes:
        min_speed: of its baseline, or of what the best replica of its model keeps of its own if that is less; one
            that is slower for `slow_for_s` is a straggler. What is lost for want of work, to imbalance or the
            control plane does not count against it.
        slow_for_s: how long it is slower.
        stuck_after_s: it holds requests and has not brought a token for so long.
        probe_every_s: a replica that had no requests for so long is asked for a small generation.
        probe_timeout_s: in which that is to be done.
        max_quarantined: share of a model's replicas that may be out of routing at a time; one always may, if it is
            not the only one.
        replace_after_s: one that is still sick after so long in quarantine is replaced.
    """

    min_speed: Share = 0.7
    slow_for_s: Seconds = 60.0
    stuck_after_s: Seconds = 60.0
    probe_every_s: Seconds = 60.0
    probe_timeout_s: Seconds = 20.0
    max_quarantined: Share = 0.2
    replace_after_s: Seconds = 120.0


class PriceSettings(Section):
    """What nodes cost.

    Attributes:
        currency: for people.
        node_hour: of one node, by node type. Either all types that the cluster has, or none, should have one.
    """

    currency: str = "USD"
    node_hour: dict[str, Price] = Field(default_factory=dict)


class ControllerSettings(Section):
    """The scaling controller.

    Attributes:
        enabled: run it with the service.
        tick_s: between two looks.
        models: by model; a model that is not named is left as it is.
    """

    enabled: bool = False
    tick_s: Seconds = 5.0
    models: dict[str, ScalingSettings] = Field(default_factory=dict)
    health: HealthSettings = HealthSettings()
    prices: PriceSettings = PriceSettings()

    @field_validator("models", mode="before")
    @classmethod
    def _empty_means_defaults(cls, models: object) -> object:
        """`llama:` with nothing behind it."""
        if isinstance(models, dict):
            return {name: {} if value is None else value for name, value in models.items()}
        return models
