"""An engine without tensors: it answers requests like any other, and its steps take as long as a profile says.

Deadlines follow the schedule, not the wake-ups. A host that comes late finds the step due and the next one already
counting from when it was due:

    schedule   |-- step 1 --|-- step 2 --|-- step 3 --|
    step()                    ^ late       ^ on time     (step 2 does not move)
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf

import numpy as np

from ...errors import ConfigError, EngineError
from ..protocol import U64, EngineInfo, EngineStats, FinishReason, StepOutputs, StepRecord, SubmitBatch
from .faults import Fault, death_s, faulty_slots, faulty_step_s
from .loops import NUM_RESERVED_IDS
from .profile import StepTimeProfile
from .scheduler import NewTokens, SimulatedScheduler, StepWork
from .sequences import sequences_of

_KV_BLOCK_TOKENS = 16
_NO_WORK = StepWork(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class _PacedStep:
    """The step that runs now: `work` from `start_s` to `due_s` on the engine's clock."""

    work: StepWork
    start_s: float
    due_s: float


@dataclass(slots=True)
class _Totals:
    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    recomputed_tokens: int = 0
    step_s: float = 0.0


class SimulatedEngine:
    """One accelerator by `profile`. It implements `Engine`, and may be paced without blocking:

    `next_step_at()` says when the running step is due; `step()` from then on returns at once. Called earlier,
    `step()` sleeps until then. So one thread can drive many engines.

    Args:
        profile: whose step times, KV capacity and vocabulary.
        scenario: whose engine settings.
        faults: what goes wrong, in seconds since now.
        max_model_len: most tokens of prompt + answer; None takes the profile's.
        vocab_size: answers consist of ids below it; None takes the profile's.
        clock: seconds, monotonic.
        sleep: waits for so many seconds on that clock.

    Raises:
        ConfigError: the profile has no such scenario, or a request of max_model_len would not fit its KV cache.
    """

    def __init__(
        self,
        profile: StepTimeProfile,
        scenario: str = "server",
        *,
        faults: Sequence[Fault] = (),
        max_model_len: int | None = None,
        vocab_size: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits = profile.scenario(scenario).limits
        self._profile = profile
        self._max_model_len = profile.max_model_len if max_model_len is None else max_model_len
        vocab_size = profile.vocab_size if vocab_size is None else vocab_size
        if not 2 <= self._max_model_len < profile.kv_capacity_tokens:
            raise ConfigError(
                "max_model_len",
                self._max_model_len,
                f"must be at least 2 and below the {profile.kv_capacity_tokens} tokens of the KV cache",
            )
        if vocab_size <= NUM_RESERVED_IDS:
            raise ConfigError("vocab_size", vocab_size, f"must be more than {NUM_RESERVED_IDS}")
        self._scheduler = SimulatedScheduler(
            self._limits,
            kv_capacity_tokens=profile.kv_capacity_tokens,
            max_model_len=self._max_model_len,
            vocab_size=vocab_size,
        )
        self._faults = tuple(faults)
        self._clock = clock
        self._sleep = sleep
        self._start_s = clock()
        self._death_s = self._start_s + death_s(self._faults)
        self._free_at_s = self._start_s
        self._step: _PacedStep | None = None
        self._submitted: list[SubmitBatch] = []
        self._rejected: list[U64] = []
        self._totals = _Totals()
        self._no_logprobs = np.full(self._limits.max_num_seqs, np.nan, np.float32)
        self._info = EngineInfo(
            engine="simulated",
            max_model_len=self._max_model_len,
            max_num_seqs=self._limits.max_num_seqs,
            settings={
                "simulated": True,
                "profile": profile.name,
                "scenario": scenario,
                "kv_capacity_tokens": profile.kv_capacity_tokens,
                "vocab_size": vocab_size,
                "faults": "; ".join(str(fault) for fault in self._faults),
                **asdict(self._limits),
            },
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    def submit(self, batch: SubmitBatch) -> None:
        """Queue requests. Stop ids, logprobs and sampling settings but the seed are ignored, see `answers`."""
        if not self.has_work():
            self._free_at_s = max(self._free_at_s, self._clock())
        self._submitted.append(batch)

    def abort(self, request_ids: U64) -> None:
        self._take_in()
        self._scheduler.abort(request_ids)
        self._rejected = [ids for old in self._rejected if len(ids := old[~np.isin(old, request_ids)])]

    def has_work(self) -> bool:
        return bool(self._scheduler.num_running or self._scheduler.num_waiting or self._rejected or self._submitted)

    def next_step_at(self) -> float | None:
        """When the running step is due, on the engine's clock; without work, when the engine dies, or None.

        A step starts to run with the first question for it, with the requests known then.
        """
        if self._step is None:
            if not self.has_work():
                return self._death_s if self._death_s < inf else None
            self._step = self._begin_step(self._free_at_s)
        return min(self._step.due_s, self._death_s)

    def next_intake(self) -> tuple[float, float] | None:
        """When requests must have come to be computed with the next prompts, on the engine's clock, and seconds
        from one such time to the next, should no further prompts make steps longer; None while no step runs."""
        if self._step is None:
            return None
        steps, every = self._scheduler.steps_to_intake()
        step_s = self._profile.curve.step_s(0, self._scheduler.num_running, self._scheduler.num_kv_tokens)
        return self._step.due_s + steps * step_s, every * step_s

    def step(self) -> StepOutputs:
        """The outputs of the running step; waits until it is due. Without work it returns at once, without rows.

        Raises:
            EngineError: an injected fault ended the engine.
        """
        due_s = self.next_step_at()
        if due_s is None or (not self.has_work() and self._clock() < due_s):
            return self._outputs(NewTokens.none(), StepRecord(0.0, 0, 0, 0))
        while (early_s := due_s - self._clock()) > 0:
            self._sleep(early_s)
        if due_s >= self._death_s:
            raise EngineError(f"the simulated {self._profile.accelerator} died, as its faults say")
        step, self._step = self._step, None
        assert step is not None
        self._free_at_s = step.due_s
        work = step.work
        record = work.record(step.due_s - step.start_s)
        new = NewTokens.none() if work is _NO_WORK else self._scheduler.complete()
        self._count(record, len(new.ids))
        return self._outputs(new, record)

    def stats(self) -> EngineStats:
        self._take_in()
        totals, scheduler = self._totals, self._scheduler
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_kv_blocks=self._profile.kv_capacity_tokens // _KV_BLOCK_TOKENS,
            num_kv_blocks_used=-(-scheduler.num_kv_tokens // _KV_BLOCK_TOKENS),
            total_steps=totals.steps,
            total_prompt_tokens=totals.prompt_tokens,
            total_output_tokens=totals.output_tokens,
            total_cached_prompt_tokens=0,
            total_recomputed_tokens=totals.recomputed_tokens,
            total_preemptions=scheduler.num_preemptions,
            total_step_s=totals.step_s,
        )

    def close(self) -> None:
        """Nothing to free."""

    def _take_in(self) -> None:
        """What was submitted since the last step."""
        for batch in self._submitted:
            sequences, rejected = sequences_of(batch, self._max_model_len)
            if sequences.shape[1]:
                self._scheduler.submit(sequences)
            if len(rejected):
                self._rejected.append(rejected)
        self._submitted = []

    def _begin_step(self, start_s: float) -> _PacedStep:
        self._take_in()
        since_start_s = start_s - self._start_s
        if not (self._scheduler.num_running or self._scheduler.num_waiting):
            return _PacedStep(_NO_WORK, start_s, start_s)
        slots = faulty_slots(self._faults, since_start_s, self._limits.max_num_seqs)
        work = self._scheduler.compose(slots)
        curve = self._profile.curve
        step_s = curve.step_s(work.num_prefill_tokens, work.num_decode_tokens, work.num_kv_tokens)
        return _PacedStep(work, start_s, start_s + faulty_step_s(self._faults, since_start_s, step_s))

    def _count(self, record: StepRecord, num_output_tokens: int) -> None:
        totals = self._totals
        totals.steps += 1
        totals.prompt_tokens += record.num_prefill_tokens
        totals.output_tokens += num_output_tokens
        totals.recomputed_tokens += record.num_recomputed_tokens
        totals.step_s += record.step_s

    def _outputs(self, new: NewTokens, record: StepRecord) -> StepOutputs:
        """The rows of new tokens, then those of requests that can never be served."""
        if self._rejected:
            rejected, self._rejected = np.concatenate(self._rejected), []
            new = replace(
                new,
                ids=np.concatenate((new.ids, rejected)),
                token_ids=np.concatenate((new.token_ids, np.full(len(rejected), -1, np.int32))),
                finish=np.concatenate((new.finish, np.full(len(rejected), FinishReason.ERROR, np.uint8))),
            )
        count = len(new.ids)
        if count > len(self._no_logprobs):
            self._no_logprobs = np.full(count, np.nan, np.float32)
        return StepOutputs(
            request_ids=new.ids,
            token_ids=new.token_ids,
            finish=new.finish,
            logprobs=self._no_logprobs[:count],
            top_ids=np.zeros((count, 0), np.int32),
            top_logprobs=np.zeros((count, 0), np.float32),
            step=record,
        )
