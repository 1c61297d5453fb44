"""What a baseline tells routers of the speed of a kind of replica, before they have seen its steps."""

from dataclasses import dataclass

from .addresses import ReplicaAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedPrior:
    """Steps of one model's replicas of one kind.

    Attributes:
        accelerator, tp: the kind.
        points: prompt tokens, decode tokens and seconds of a step each, see `StepLine.from_baseline`.
    """

    model: str
    accelerator: str
    tp: int
    points: tuple[tuple[float, float, float], ...]

    @property
    def key(self) -> str:
        return f"{self.model}/{self.accelerator}/tp{self.tp}"

    def fits(self, address: ReplicaAddress) -> bool:
        """Whether that replica is of the kind."""
        return (self.model, self.accelerator, self.tp) == (address.model, address.accelerator, address.tp)
