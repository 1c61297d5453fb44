"""The run record: all that is needed to run a measurement again and to judge whether it was reproduced."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, JsonValue

from ..latency import Percentiles
from ..provenance import Provenance
from ..record import Record
from .scenarios import Scenario

RECORD_VERSION = 1

Setting = str | int | float | bool


class WorkloadFacts(Record):
    """What was asked.

    Attributes:
        asked: the name on the command line.
        name: as results are published.
        data_set: says `synthetic` when it was made up.
        digest: SHA-256 of everything that an engine is asked.
        data_file: the file's name, when there was one.
    """

    asked: str
    name: str
    scenario: Scenario
    official: bool
    data_set: str
    source: str
    synthetic: bool
    digest: str
    num_samples: int
    mean_prompt_tokens: float
    data_file: str | None = None


class LoadgenFacts(Record):
    """How LoadGen was set.

    Attributes:
        key: its model key.
        settings: fields of its TestSettings as effective, seeds included.
        user_conf: the text of the file.
    """

    version: str
    key: str
    settings: dict[str, Setting]
    user_conf: str


class ModelFacts(Record):
    """What answered.

    Attributes:
        weights: content hash of what `weights_name` names: a checkpoint, or a simulated accelerator's profile.
        settings: of the engine, as effective after it started.
    """

    name: str
    weights: str
    weights_name: str
    engine: str
    accelerator: str
    tp: int
    settings: dict[str, Setting]


class HostFacts(Record):
    """One machine, as far as it could be read; None where it could not.

    Attributes:
        accelerators: model to installed number, as the system lists them.
        driver: accelerator driver's version.
        runtime: ROCm's or CUDA's version.
        firmware: of the accelerators, by name.
        clocks_mhz: highest core and memory clock of the accelerators.
    """

    host: str
    cpu: str
    num_cores: int
    memory_bytes: int
    kernel: str
    system: str
    accelerators: dict[str, int] = Field(default_factory=dict)
    driver: str | None = None
    runtime: str | None = None
    firmware: dict[str, str] = Field(default_factory=dict)
    clocks_mhz: dict[str, int] = Field(default_factory=dict)
    cpu_governor: str | None = None


class NodeFacts(Record):
    """One node of the service.

    Attributes:
        healthy: accelerators that replicas of the model run on.
        installed: what the node has; None where nobody says.
        host: index into the record's hosts; None where it could not be read.
    """

    name: str
    accelerator: str
    healthy: int
    installed: int | None = None
    host: int | None = None


class ClientFacts(Record):
    """The load generator's own share.

    Attributes:
        busy_share: of the run, what the client did not wait.
        delayed_share: of the run, what it had work and no core.
        cpu_cores: CPU seconds per second.
        roofline_tokens_per_s: what the same client reached against a stub before.
    """

    busy_share: float
    delayed_share: float = 0.0
    cpu_cores: float
    roofline_tokens_per_s: float | None


class LedgerFacts(Record):
    """See `cluster.ledger.Ledger`; `losses` sum to the gap."""

    window_s: float
    measured: float
    baseline: float
    efficiency: float | None
    losses: dict[str, float]

    @property
    def of_linear(self) -> float:
        """What was measured, over what the baseline gives on so many nodes."""
        return self.measured / self.baseline

    @property
    def loss_shares(self) -> dict[str, float]:
        """The losses over what the baseline gives."""
        return {name: rate / self.baseline for name, rate in self.losses.items()}


class BaselineFacts(Record):
    """What the ledgers are measured by.

    Attributes:
        kept: the whole baseline, as the nfold that measured it keeps one.
    """

    node: str
    tokens_per_s: float
    repeats: list[float]
    date: str
    kept: dict[str, JsonValue]


class RunFigures(Record):
    """One LoadGen performance run.

    Attributes:
        figure: the scenario's result, by `unit`.
        valid: LoadGen's verdict and no error.
        void: why the run does not count, beside LoadGen's verdict.
        problems: LoadGen's errors and what it says of its verdict.
        node_tokens_per_s: output tokens/s by node over the whole run.
        node_speeds: of each node's steps, against the median node's, for the same batches, prompts and contexts.
        logs: folder within the record.
    """

    figure: float
    unit: Literal["tokens/s", "samples/s", "s"]
    valid: bool
    void: list[str]
    problems: list[str]
    target_qps: float | None
    samples_per_s: float
    tokens_per_s: float
    num_queries: int
    num_failed: int
    num_short: int
    num_tokens: int
    duration_s: float
    ttft_s: Percentiles | None
    tpot_s: Percentiles | None
    e2e_s: Percentiles | None
    node_tokens_per_s: dict[str, float]
    node_speeds: dict[str, float] = Field(default_factory=dict)
    client: ClientFacts
    ledger: LedgerFacts | None
    logs: str

    @property
    def counts(self) -> bool:
        """Whether the figure may be used."""
        return self.valid and not self.void


class Point(Record):
    """Repeats on one number of nodes.

    Attributes:
        nodes: their names.
    """

    nodes: list[str]
    num_accelerators: int
    runs: list[RunFigures] = Field(min_length=1)

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def figures(self) -> list[float]:
        """Of the repeats that count; of all when none does."""
        return [run.figure for run in self.runs if run.counts] or [run.figure for run in self.runs]

    @property
    def median(self) -> float:
        ordered = sorted(self.figures)
        return ordered[(len(ordered) - 1) // 2]

    @property
    def typical(self) -> RunFigures:
        """The repeat whose figure is the median."""
        return next(run for run in self.runs if run.figure == self.median)


class AccuracyFacts(Record):
    """One accuracy run.

    Attributes:
        misses: what keeps it from passing; empty when it passed.
        gate: where the gate comes from.
        logs: folder within the record.
    """

    metric: str
    scores: dict[str, float]
    at_least: dict[str, float]
    at_most: dict[str, float]
    misses: list[str]
    gate: str
    num_samples: int
    logs: str

    @property
    def passed(self) -> bool:
        return not self.misses


class RunRecord(Record):
    """A measurement.

    Attributes:
        simulated: no tokens were computed.
        departures: what keeps MLCommons from taking the result, as phrases.
        points: by growing number of nodes.
        accuracy: None when there was no accuracy run; `no_accuracy` says why.
        baseline: what the ledgers are measured by.
    """

    format_version: Literal[1] = RECORD_VERSION
    workload: WorkloadFacts
    loadgen: LoadgenFacts
    model: ModelFacts
    hosts: list[HostFacts]
    nodes: list[NodeFacts]
    provenance: Provenance
    simulated: bool
    departures: list[str]
    warmup_s: float
    points: list[Point] = Field(min_length=1)
    accuracy: AccuracyFacts | None
    no_accuracy: str = ""
    baseline: BaselineFacts | None

    @property
    def whole(self) -> Point:
        """The point with the most nodes."""
        return self.points[-1]

    @property
    def unit(self) -> str:
        return self.whole.runs[0].unit

    @property
    def caveats(self) -> list[str]:
        """What must stand wherever a figure of this record is shown."""
        found = ["SIMULATED: no tokens were computed"] if self.simulated else []
        if self.accuracy is None:
            found.append(f"no accuracy run: {self.no_accuracy or 'none was asked for'}")
        elif not self.accuracy.passed:
            found.append(f"accuracy NOT passed: {'; '.join(self.accuracy.misses)}")
        invalid = sum(not run.counts for point in self.points for run in point.runs)
        if invalid:
            found.append(f"{invalid} of {sum(len(point.runs) for point in self.points)} runs are INVALID or void")
        if self.departures:
            found.append(f"not MLPerf-valid: {'; '.join(self.departures)}")
        return found


def headline(record: RunRecord) -> str:
    """One line for people."""
    point = record.whole
    figure = f"{point.median:,.3f} s" if record.unit == "s" else f"{point.median:,.0f} {record.unit}"
    plural = "s" if point.num_nodes > 1 else ""
    kind = f"{point.num_accelerators} x {record.model.accelerator}"
    return f"{record.workload.name} {record.workload.scenario}: {figure} on {point.num_nodes} node{plural} ({kind})"


def departures_of(
    from_settings: Sequence[str], synthetic: bool, simulated: bool, settings: dict[str, Setting]
) -> list[str]:
    """What keeps MLCommons from taking a result."""
    found = list(from_settings)
    if synthetic:
        found.append("synthetic samples")
    if simulated:
        found.append("simulated engines")
    if settings.get("prefix_cache") is True:
        found.append("the engine's prefix cache is on, and samples come again")
    return found
