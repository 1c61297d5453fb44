"""What a bench is to do, as asked for or as a record says, before anything is known of the service."""

from dataclasses import dataclass, field
from pathlib import Path

from ...models.errors import ConfigError, StateError
from .record import RunRecord
from .scenarios import Scenario
from .user_conf import UserConf, parse_user_conf


@dataclass(frozen=True, kw_only=True)
class BenchOrder:
    """One workload in one scenario.

    Attributes:
        nodes: numbers of nodes to run on, growing; None means all, after one when no baseline is kept.
        min_duration_s: None takes LoadGen's; a shorter one is no MLPerf result, and says so.
        target_qps: of the most nodes; fewer have their share of it. None takes what the warm-up shows.
        warmup_s: None takes ten seconds.
        num_samples: fewer samples than the set has.
        find_peak: of Server and Interactive, first look for the highest load that keeps the latency limits.
        probe_s: how long each look lasts.
        without_baseline: run on these nodes though nothing tells what one gives; there is no efficiency then.
    """

    workload: str
    scenario: Scenario
    nodes: tuple[int, ...] | None = None
    repeats: int = 1
    min_duration_s: float | None = None
    target_qps: float | None = None
    warmup_s: float | None = None
    num_samples: int | None = None
    data: Path | None = None
    accuracy_data: Path | None = None
    user_conf: UserConf = field(default_factory=UserConf)
    accuracy: bool = True
    find_peak: bool = False
    probe_s: float = 60.0
    without_baseline: bool = False


def parse_nodes(text: str | None) -> tuple[int, ...] | None:
    """`1,2,4`; None and `all` mean all.

    Raises:
        ConfigError: anything else.
    """
    if text is None or text == "all":
        return None
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] < 1:
        raise ConfigError("nodes", text, "numbers of nodes such as 1,2,4")
    return found


def parse_scenario(text: str) -> Scenario:
    """By name, in any case.

    Raises:
        ConfigError: no such scenario; names those that there are.
    """
    for scenario in Scenario:
        if text.lower().replace("-", "").replace("_", "") == scenario.lower():
            return scenario
    raise ConfigError("scenario", text, f"must be one of {', '.join(Scenario)}")


def order_of(record: RunRecord, *, repeats: int | None = None, data: Path | None = None) -> BenchOrder:
    """What a bench must do to run the record's largest point again.

    Args:
        repeats: None takes as many as the record has.
        data: the data set's file, where the record was made with one.

    Raises:
        StateError: the record was made with a file, and none is given.
    """
    if record.workload.data_file is not None and data is None:
        raise StateError(f"the record was made with {record.workload.data_file}: give that file with --data")
    point = record.whole
    return BenchOrder(
        workload=record.workload.asked,
        scenario=record.workload.scenario,
        nodes=(point.num_nodes,),
        repeats=repeats or len(point.runs),
        min_duration_s=float(record.loadgen.settings["min_duration_ms"]) / 1e3,
        target_qps=point.runs[0].target_qps,
        warmup_s=record.warmup_s,
        num_samples=record.workload.num_samples,
        data=data,
        user_conf=parse_user_conf(_without_rate(record.loadgen.user_conf)),
        accuracy=False,
        without_baseline=True,
    )


def _without_rate(text: str) -> str:
    """The runs' target is taken from the record, where user.conf or the warm-up led to it."""
    return "\n".join(line for line in text.splitlines() if ".target_qps" not in line)
