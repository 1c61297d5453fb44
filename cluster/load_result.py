"""What a load run measured, out of its answers and the two ends of its window. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..deployments.router_stats import ModelSnapshot, ReplicaSnapshot, RouterSnapshot
from ..models.engine.protocol import FinishReason
from .latency import Percentiles, percentiles
from .ledger import ModelCounters
from .record import Record
from .workloads import Workload


class StepTimePoint(Record):
    """One point of the step-time curve: engine steps at one load.

    Attributes:
        num_tokens: output tokens per step, mean: the batch.
        step_s: wall time of a step, seconds, mean; the prompts that came in meanwhile included.
        num_steps: how many steps.
    """

    num_tokens: float
    step_s: float
    num_steps: int


@dataclass(slots=True, eq=False)
class Answer:
    """One request of the run; times are seconds on the run's clock.

    Attributes:
        index: of its prompt in the workload.
        due_s: when it was to be submitted.
        request_id: the router's; -1 when it refused.
        error: what went wrong, when `finish` is ERROR.
    """

    index: int
    due_s: float
    request_id: int = -1
    first_s: float | None = None
    finished_s: float | None = None
    finish: FinishReason = FinishReason.NONE
    token_ids: list[int] = field(default_factory=list[int])
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.finish in (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(frozen=True, slots=True)
class Edge:
    """One end of the measured window: when, this process's CPU seconds so far, and what the router had counted."""

    time_s: float
    cpu_s: float
    snapshot: RouterSnapshot


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """Figures of the measured window.

    Attributes:
        workload: its name.
        arrivals: how requests came, as a phrase.
        steady: the window excludes ramp-up and tail; else it is the whole run.
        num_submitted: requests of the whole run.
        num_output_tokens, num_prompt_tokens: as the router counted them; prompts at their first token.
        num_requests: those that ended in the window, failed ones included.
        num_failed: of these; refused ones included.
        first_error: what the first failed one said.
        num_exact: of the requests that did not fail, those with the right answer; None when it cannot be checked.
        ttft_s, tpot_s, e2e_s: of the requests that ended well in the window; from when they were due.
        output_tokens_by_replica: of the replicas that were there at both ends.
        nodes: node of each replica.
        client_cpu_share: CPU seconds per second of this process, all its threads.
        samples: counters for the ledger, from one end of the window to the other.
        step_times: by replica.
    """

    workload: str
    arrivals: str
    steady: bool
    window_s: float
    num_submitted: int
    num_output_tokens: int
    num_prompt_tokens: int
    num_requests: int
    num_failed: int
    first_error: str
    num_exact: int | None
    ttft_s: Percentiles | None
    tpot_s: Percentiles | None
    e2e_s: Percentiles | None
    output_tokens_by_replica: Mapping[str, int]
    nodes: Mapping[str, str]
    client_cpu_share: float
    samples: tuple[ModelCounters, ...]
    step_times: Mapping[str, StepTimePoint]

    @property
    def output_tokens_per_s(self) -> float:
        return self.num_output_tokens / self.window_s

    @property
    def total_tokens_per_s(self) -> float:
        """Prompt and output tokens."""
        return (self.num_prompt_tokens + self.num_output_tokens) / self.window_s

    @property
    def exact_share(self) -> float | None:
        num_ok = self.num_requests - self.num_failed
        return None if self.num_exact is None or num_ok == 0 else self.num_exact / num_ok

    @property
    def tokens_per_s_by_node(self) -> dict[str, float]:
        """Output tokens/s."""
        rates: dict[str, float] = {}
        for replica, num_tokens in self.output_tokens_by_replica.items():
            rates[self.nodes[replica]] = rates.get(self.nodes[replica], 0.0) + num_tokens / self.window_s
        return rates


def evaluate(
    *,
    model: str,
    workload: Workload,
    arrivals: str,
    steady: bool,
    start: Edge,
    end: Edge,
    num_submitted: int,
    answers: Sequence[Answer],
    samples: tuple[ModelCounters, ...],
    node_names: Mapping[str, str],
) -> LoadResult:
    """Figures of the window from `start` to `end`. `answers` are those that have ended, in any order."""
    within = [a for a in answers if a.finished_s is not None and start.time_s < a.finished_s <= end.time_s]
    good = [answer for answer in within if answer.ok]
    window_s = end.time_s - start.time_s
    before, after = _model(start.snapshot, model), _model(end.snapshot, model)
    replicas = _replica_pairs(start.snapshot, end.snapshot)
    check = workload.check
    return LoadResult(
        workload=workload.name,
        arrivals=arrivals,
        steady=steady,
        window_s=window_s,
        num_submitted=num_submitted,
        num_output_tokens=after.num_output_tokens - before.num_output_tokens,
        num_prompt_tokens=after.num_prompt_tokens - before.num_prompt_tokens,
        num_requests=len(within),
        num_failed=len(within) - len(good),
        first_error=next((answer.error for answer in within if not answer.ok), ""),
        num_exact=None if check is None else sum(check(answer.index, answer.token_ids) for answer in good),
        ttft_s=percentiles([a.first_s - a.due_s for a in good if a.first_s is not None]),
        tpot_s=percentiles(_times_per_token(good)),
        e2e_s=percentiles([a.finished_s - a.due_s for a in good if a.finished_s is not None]),
        output_tokens_by_replica={
            new.address.replica_id: new.num_output_tokens - old.num_output_tokens for old, new in replicas
        },
        nodes={
            new.address.replica_id: node_names.get(new.address.node_id, new.address.node_id) for _, new in replicas
        },
        client_cpu_share=(end.cpu_s - start.cpu_s) / window_s,
        samples=samples,
        step_times={new.address.replica_id: point for old, new in replicas if (point := _step_time(old, new))},
    )


def _model(snapshot: RouterSnapshot, model: str) -> ModelSnapshot:
    return next(entry for entry in snapshot.models if entry.model == model)


def _replica_pairs(before: RouterSnapshot, after: RouterSnapshot) -> list[tuple[ReplicaSnapshot, ReplicaSnapshot]]:
    old = {replica.address.replica_id: replica for replica in before.replicas}
    return [(old[new.address.replica_id], new) for new in after.replicas if new.address.replica_id in old]


def _times_per_token(answers: Sequence[Answer]) -> list[float]:
    """Time per output token after the first, of each answer with two tokens and more."""
    return [
        (answer.finished_s - answer.first_s) / (len(answer.token_ids) - 1)
        for answer in answers
        if answer.finished_s is not None and answer.first_s is not None and len(answer.token_ids) > 1
    ]


def _step_time(old: ReplicaSnapshot, new: ReplicaSnapshot) -> StepTimePoint | None:
    """Between the statuses that the replica had sent by the two ends."""
    if old.status is None or new.status is None:
        return None
    before, after = old.status.stats, new.status.stats
    num_steps = after.total_steps - before.total_steps
    if num_steps <= 0:
        return None
    return StepTimePoint(
        num_tokens=(after.total_output_tokens - before.total_output_tokens) / num_steps,
        step_s=(after.total_step_s - before.total_step_s) / num_steps,
        num_steps=num_steps,
    )
