"""A published LoadGen run, replayed on one accelerator of a profile in virtual time: a step costs microseconds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .faults import Fault, faulty_slots, faulty_step_s
from .lengths import WORKLOADS
from .loops import Sequences
from .profile import LoadgenRun, StepTimeProfile
from .scheduler import NewTokens, SimulatedScheduler, StepWork
from .sequences import known_sequences

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in the order in which they come; all arrays [N]."""

    arrivals_s: F64
    sequences: Sequences
    answer_lens: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What LoadGen would report of one accelerator.

    Attributes:
        tokens_per_s: as LoadGen counts: all output tokens over the time at which the last request ended, or with
            arrivals over time, at which the request issued last did.
        saturated_tokens_per_s: between 20 % and 80 % of the tokens, so without ramp and tail.
        ttft_s: [N] from arrival to first token.
        tpot_s: [N] per output token after the first.
        mean_running: requests per step, mean.
    """

    tokens_per_s: float
    saturated_tokens_per_s: float
    ttft_s: F64
    tpot_s: F64
    mean_running: float
    num_steps: int
    num_preemptions: int

    def figure(self, name: str) -> float:
        """By the names of `ScenarioProfile.figures`."""
        if name == "tokens_per_s":
            return self.tokens_per_s
        latency, percentile, _ = name.split("_")
        values = {"ttft": self.ttft_s, "tpot": self.tpot_s}[latency]
        return float(np.percentile(values, float(percentile.removeprefix("p"))))


def make_load(profile: StepTimeProfile, run: LoadgenRun, *, share: float = 1.0, seed: int = 0) -> Load:
    """One accelerator's part of `run`: arrivals at exactly its rate, or all at 0 where it has none.

    Args:
        profile: whose workload and node.
        run: of the whole node.
        share: of the run's requests, for a shorter one.
        seed: of all draws.
    """
    random = np.random.default_rng(seed)
    lengths = WORKLOADS[profile.workload]
    count = max(1, round(run.num_samples * share / profile.num_accelerators))
    prompt_lens = lengths.prompt.sample(count, random)
    answer_lens = lengths.answer.with_mean(run.tokens_per_sample).sample(count, random)
    if run.last_answer_tokens is not None:
        answer_lens[-1] = run.last_answer_tokens
    arrivals_s = np.zeros(count)
    if run.samples_per_s is not None:
        # Of the node's Poisson arrivals each accelerator gets every n-th: about what the shortest queue does.
        gaps_s = random.gamma(profile.num_accelerators, 1 / run.samples_per_s, count)
        # The published rate is that of the issued requests, not the one aimed at.
        arrivals_s = np.cumsum(gaps_s) * (count * profile.num_accelerators / run.samples_per_s / gaps_s.sum())
    return Load(arrivals_s, known_sequences(prompt_lens, answer_lens, profile.max_model_len), answer_lens)


def replay(profile: StepTimeProfile, scenario: str, load: Load) -> RunResult:
    """Run `load` to its end on one accelerator with the settings of `scenario`."""
    engine = VirtualEngine(profile, scenario)
    count = len(load.arrivals_s)
    first_s, end_s = np.zeros(count), np.zeros(count)
    seen = np.zeros(count, np.bool_)
    token_times: list[tuple[float, int]] = []
    now_s, num_submitted, num_ended, sum_running = 0.0, 0, 0, 0
    while num_ended < count:
        arrived = int(np.searchsorted(load.arrivals_s, now_s, side="right"))
        if arrived > num_submitted:
            engine.submit(load.sequences[:, num_submitted:arrived])
            num_submitted = arrived
        if not engine.has_work:
            now_s = float(load.arrivals_s[num_submitted])
            continue
        now_s = engine.begin_step(now_s)
        sum_running += engine.num_running
        new, _, _ = engine.end_step()
        fresh = new.ids[~seen[new.ids]]
        first_s[fresh], seen[fresh] = now_s, True
        ended = new.ids[new.finish != 0]
        end_s[ended] = now_s
        num_ended += len(ended)
        token_times.append((now_s, len(new.ids)))
    times_s, tokens = (np.array(column, np.float64) for column in zip(*token_times, strict=True))
    done = np.cumsum(tokens)
    low, high = np.searchsorted(done, (0.2 * done[-1], 0.8 * done[-1]))
    clock_stops_s = end_s[-1] if load.arrivals_s[-1] > 0 else now_s
    return RunResult(
        tokens_per_s=float(done[-1] / clock_stops_s),
        saturated_tokens_per_s=float((done[high] - done[low]) / max(times_s[high] - times_s[low], 1e-9)),
        ttft_s=first_s - load.arrivals_s,
        tpot_s=((end_s - first_s) / np.maximum(load.answer_lens - 1, 1))[load.answer_lens > 1],
        mean_running=sum_running / len(times_s),
        num_steps=len(times_s),
        num_preemptions=engine.num_preemptions,
    )


class VirtualEngine:
    """One accelerator in virtual time: the same steps as a `SimulatedEngine`, without waiting for them.

    Args:
        profile: whose step times and KV cache.
        scenario: whose engine settings.
        slowness: every step takes this times as long as the profile says.
        faults: what goes wrong, in virtual time; an engine that dies is for the caller to end.
    """

    def __init__(
        self, profile: StepTimeProfile, scenario: str, slowness: float = 1.0, faults: tuple[Fault, ...] = ()
    ) -> None:
        self._limits = profile.scenario(scenario).limits
        self._curve = profile.curve
        self._slowness = slowness
        self._faults = faults
        self._scheduler = SimulatedScheduler(
            self._limits,
            kv_capacity_tokens=profile.kv_capacity_tokens,
            max_model_len=profile.max_model_len,
            vocab_size=profile.vocab_size,
        )
        self._running: tuple[StepWork, float] | None = None
        self.due_s: float | None = None

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.num_running or self._scheduler.num_waiting)

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    @property
    def num_preemptions(self) -> int:
        return self._scheduler.num_preemptions

    def submit(self, sequences: Sequences) -> None:
        """Requests that each fit the KV cache alone."""
        self._scheduler.submit(sequences)

    def begin_step(self, now_s: float) -> float:
        """Begin one; there must be work and no step running. Returns when it is due, `due_s` until it is ended."""
        work = self._scheduler.compose(faulty_slots(self._faults, now_s, self._limits.max_num_seqs))
        step_s = self._slowness * self._curve.step_s(
            work.num_prefill_tokens, work.num_decode_tokens, work.num_kv_tokens
        )
        step_s = faulty_step_s(self._faults, now_s, step_s)
        self._running = work, step_s
        self.due_s = now_s + step_s
        return self.due_s

    def end_step(self) -> tuple[NewTokens, StepWork, float]:
        """The running step's tokens, what it computed and how long it took."""
        assert self._running is not None
        (work, step_s), self._running = self._running, None
        self.due_s = None
        return self._scheduler.complete(), work, step_s
