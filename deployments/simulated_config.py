"""The part of the YAML that describes simulated engines."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..models.engine.simulated.faults import Die, Fault, LoseSlots, Slow, Stall
from ..models.engine.simulated.profile import StepTimeProfile, load_profile, profile_names
from ..models.errors import ConfigError

# Accelerators, pools, resources and labels of simulated engines all begin with it.
SIMULATED_PREFIX = "simulated-"

# Simulated answers consist of ids below it: in the tokenizer of the model that comes with nfold, ASCII characters.
ANSWER_VOCAB_SIZE = 127

NotNegative = Annotated[int, Field(ge=0)]

_NEEDS = {"slow": "percent", "stall": "duration_s", "lose_slots": "share"}


class FaultConfig(BaseModel):
    """A known fault.

    Attributes:
        kind: `slow` (steps take `percent` longer), `stall` (nothing is computed for `duration_s`), `die` (the
            engine fails), `lose_slots` (a `share` of the slots, 0 to 1, is gone).
        at_s: seconds after the engine's start.
        hosts: simulated nodes of the pool, from 0 in Serve's order; None means all.
        engines: engines on each of these, from 0; None means all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["slow", "stall", "die", "lose_slots"]
    at_s: Annotated[float, Field(ge=0)] = 0.0
    percent: Annotated[float, Field(gt=-100)] | None = None
    duration_s: Annotated[float, Field(gt=0)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    hosts: list[NotNegative] | None = None
    engines: list[NotNegative] | None = None

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        wanted = _NEEDS.get(self.kind)
        for name in _NEEDS.values():
            if (getattr(self, name) is not None) != (name == wanted):
                raise ValueError(f"a fault of kind {self.kind} {'needs' if name == wanted else 'has no'} {name}")
        return self

    def hits(self, host: int, engine: int) -> bool:
        """Whether it is a fault of this engine."""
        return (self.hosts is None or host in self.hosts) and (self.engines is None or engine in self.engines)

    @property
    def fault(self) -> Fault:
        match self.kind:
            case "slow":
                return Slow(self.percent or 0.0, self.at_s)
            case "stall":
                return Stall(self.at_s, self.duration_s or 0.0)
            case "die":
                return Die(self.at_s)
            case "lose_slots":
                return LoseSlots(self.share or 0.0, self.at_s)


class SimulatedConfig(BaseModel):
    """What simulated engines pretend to be; the accelerator is their pool's.

    Attributes:
        model_profile: the model half of a profile's name in `models/engine/simulated/profiles`.
        scenario: whose engine settings: `offline`, `server` or `interactive`.
        faults: what goes wrong, and where.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_profile: str = "llama-2-70b"
    scenario: str = "offline"
    faults: list[FaultConfig] = []

    def profile(self, accelerator: str) -> StepTimeProfile:
        """The profile for a pool of `accelerator`, which has the scenario.

        Raises:
            ConfigError: there is none; names those that there are.
        """
        name = f"{accelerator.removeprefix(SIMULATED_PREFIX)}--{self.model_profile}"
        if name not in profile_names():
            raise ConfigError(
                "simulated", name, f"no such profile of accelerator and model_profile; there is {_known_profiles()}"
            )
        profile = load_profile(name)
        profile.scenario(self.scenario)
        return profile

    def faults_of(self, host: int, engine: int) -> Sequence[Fault]:
        """The faults of one engine of one simulated node, both counted from 0."""
        return [each.fault for each in self.faults if each.hits(host, engine)]


def _known_profiles() -> str:
    known: dict[str, list[str]] = {}
    for name in profile_names():
        accelerator, model = name.split("--")
        known.setdefault(model, []).append(accelerator)
    return "; ".join(f"{model} on {', '.join(accelerators)}" for model, accelerators in known.items())
