"""A record beside results that others published, and what explains the difference. Pure."""

from dataclasses import dataclass

from .published_results import PublishedResult, published_efficiency, published_for
from .record import RunRecord

# Columns of less are not named.
_LEAST = 0.001


@dataclass(frozen=True, slots=True)
class Beside:
    """One published result.

    Attributes:
        share: the record's figure over it.
        explanation: the load of both, how far they are from their own single nodes, and where the record lost or
            won against its baseline; empty where there is nothing to say.
    """

    result: PublishedResult
    share: float
    explanation: str

    @property
    def name(self) -> str:
        return f"{self.result.source}, {self.result.num_accelerators} x {self.result.accelerator}"


def published_beside(record: RunRecord) -> list[Beside]:
    """Results of the same workload, scenario, accelerator and number."""
    point = record.whole
    found = published_for(
        record.workload.name, record.model.accelerator, point.num_accelerators, record.workload.scenario
    )
    return [Beside(result, point.median / result.tokens_per_s, _explained(record, result)) for result in found]


def _explained(record: RunRecord, result: PublishedResult) -> str:
    theirs, run = published_efficiency(result), record.whole.typical
    said: list[str] = []
    if run.target_qps is not None and result.target_qps is not None and record.workload.scenario.is_server:
        said.append(f"{run.target_qps:,.0f} queries/s were sent here, {result.target_qps:,.0f} there")
    if theirs is not None:
        said.append(f"the published run is at {theirs:.1%} of as many accelerators of its own single node")
    if run.ledger is not None and record.whole.num_nodes > 1:
        said.append(f"this record at {run.ledger.of_linear:.1%} of its own")
        shares = run.ledger.loss_shares
        lost = [f"{share:.1%} {name}" for name, share in shares.items() if share >= _LEAST]
        won = [f"{-share:.1%} {name}" for name, share in shares.items() if share <= -_LEAST]
        said.append(f"it lost {', '.join(lost)}" if lost else "it lost nothing to speak of")
        if won:
            said.append(f"it won {', '.join(won)}")
    return "; ".join(said)
