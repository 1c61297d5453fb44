"""A load on replicas through a router in this very process: no HTTP, no Serve handle, only the data path.

    submit │ warm-up, ramp-up │        measured window          │ tail (aborted)
           └──────────────────┴── snapshot ───────── snapshot ──┘

Tokens are counted by the router as they arrive; rates are differences between the two snapshots. A reply comes in
two pieces (first token, rest), so this process does little per request and nothing per token; it reports its own
CPU share, because on a small machine the replicas need every core.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..deployments.router import Router, TokenChunk
from ..models.engine.protocol import FinishReason
from ..models.errors import ConfigError, EngineError, OverloadedError, UnavailableError
from .arrivals import Arrivals
from .ledger import ModelCounters
from .load_result import Answer, Edge, LoadResult, evaluate
from .service_view import merge, model_counters
from .workloads import Workload

POLL_S = 0.05
# A closed loop replaces what has ended so often, all of it at once: that spares the engines' cores. Replicas hold
# successors for that long.
CLOSED_LOOP_S = 0.01
SAMPLE_S = 0.5
PROGRESS_S = 2.0
# Failures without one success after which a run is given up.
HOPELESS = 100


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """What bounds a run.

    Attributes:
        warmup_s: before the window opens, however fast the load settles.
        window_s: length of the measured window of a load that settles.
        max_requests: most requests of the whole run.
        stall_s: give up when nothing ends for so long although requests are in flight.
        timeout_s: give up on a run that has not ended by then.
    """

    warmup_s: float = 2.0
    window_s: float = 10.0
    max_requests: int = 1_000_000
    stall_s: float = 120.0
    timeout_s: float = 900.0


def run_load(
    router: Router,
    model: str,
    workload: Workload,
    arrivals: Arrivals,
    settings: LoadSettings = LoadSettings(),
    *,
    first: int = 0,
    node_names: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> LoadResult:
    """Put a load on the replicas that `router` knows, and measure.

    The window opens when the load has settled and `warmup_s` have passed, and closes after `window_s` or with the
    last of `max_requests`; what is then in flight is aborted. An offline load is measured from its first submission
    to its last token.

    Args:
        router: used by nobody else meanwhile; its replicas are ready (see `measuring_router`).
        first: where to begin in the workload; an earlier run's `num_submitted` further on, prompts are new again.
        node_names: by Ray's node id, for the figures by node.
        progress: takes a line about every two seconds.

    Raises:
        ConfigError: `max_requests` were submitted before the load had settled.
        EngineError: one request after another failed.
        UnavailableError: nothing came for `stall_s`, the run took longer than `timeout_s`, or no replica is left.
        OverloadedError: the router's queue is too short for the closed loop or the offline load.
    """
    return _Run(router, model, workload, arrivals, settings, first, node_names or {}, progress, clock).run()


class _Run:
    def __init__(
        self,
        router: Router,
        model: str,
        workload: Workload,
        arrivals: Arrivals,
        settings: LoadSettings,
        first: int,
        node_names: Mapping[str, str],
        progress: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._router = router
        self._model = model
        self._workload = workload
        self._arrivals = arrivals
        self._settings = settings
        self._first = first
        self._node_names = node_names
        self._progress = progress
        self._clock = clock
        self._in_flight: dict[int, Answer] = {}
        self._ended: list[Answer] = []
        self._num_submitted = 0
        self._submitted_s = float("-inf")
        self._num_failed = 0
        self._samples: list[ModelCounters] = []
        self._began_s = self._told_s = self._last_end_s = clock()
        self._start: Edge | None = None

    def run(self) -> LoadResult:
        if not self._arrivals.steady:
            self._start = self._edge()
        try:
            self._submit_due()
            while not self._is_over():
                self._router.poll(self._patience_s())
                self._submit_due()
                self._look()
            assert self._start is not None
            end = self._edge()
        finally:
            self._abort_rest()
        result = evaluate(
            model=self._model,
            workload=self._workload,
            arrivals=str(self._arrivals),
            steady=self._arrivals.steady,
            start=self._start,
            end=end,
            num_submitted=self._num_submitted,
            answers=self._ended,
            samples=tuple(self._samples),
            node_names=self._node_names,
        )
        self._progress(
            f"{self._model} under {self._workload.name}, {self._arrivals}: "
            f"{result.output_tokens_per_s:,.0f} tokens/s over {result.window_s:.1f} s; "
            f"this process took {result.client_cpu_share:.0%} of a core"
        )
        return result

    def _submit_due(self) -> None:
        elapsed_s = self._clock() - self._began_s
        if not self._arrivals.open and elapsed_s - self._submitted_s < CLOSED_LOOP_S:
            return
        due = self._arrivals.take_due(elapsed_s, self._num_submitted, len(self._in_flight))
        due = due[: self._settings.max_requests - self._num_submitted]
        answers = [
            Answer((self._first + number) % len(self._workload), self._began_s + due_s)
            for number, due_s in enumerate(due, self._num_submitted)
        ]
        self._num_submitted += len(answers)
        self._submitted_s = elapsed_s
        if not self._arrivals.open:
            self._submit(answers)
            return
        for answer in answers:
            try:
                self._submit([answer])
            except OverloadedError as error:
                answer.finish, answer.error = FinishReason.ERROR, str(error)
                self._end(answer, self._clock())

    def _patience_s(self) -> float:
        if not self._arrivals.open:
            return CLOSED_LOOP_S
        next_s = self._began_s + self._arrivals.next_due_s()
        return max(0.0, min(POLL_S, next_s - self._clock()))

    def _submit(self, answers: list[Answer]) -> None:
        """All of them or, on an error, none."""
        ids = self._router.submit_many(
            self._model,
            [self._workload.prompts[answer.index] for answer in answers],
            [self._workload.sampling[answer.index] for answer in answers],
            [self._sink(answer) for answer in answers],
        )
        for request_id, answer in zip(ids, answers, strict=True):
            answer.request_id = request_id
            self._in_flight[request_id] = answer

    def _sink(self, answer: Answer) -> Callable[[TokenChunk], None]:
        def take(chunk: TokenChunk) -> None:
            now_s = self._clock()
            if answer.first_s is None and chunk.token_ids:
                answer.first_s = now_s
            answer.token_ids += chunk.token_ids
            if chunk.finish is not FinishReason.NONE:
                answer.finish, answer.error = chunk.finish, chunk.error
                self._end(answer, now_s)

        return take

    def _end(self, answer: Answer, now_s: float) -> None:
        answer.finished_s = self._last_end_s = now_s
        self._in_flight.pop(answer.request_id, None)
        self._ended.append(answer)
        self._num_failed += not answer.ok

    def _look(self) -> None:
        """Open the window when it is time, take samples within it, tell how it goes, and give up on what hangs."""
        now_s = self._clock()
        if self._start is None and self._has_settled(now_s):
            self._start = self._edge()
        elif self._start is not None and now_s - self._samples[-1].time_s >= SAMPLE_S:
            self._sample()
        if now_s - self._told_s >= PROGRESS_S:
            self._told_s = now_s
            self._progress(self._line(now_s))
        self._give_up_on_what_hangs(now_s)

    def _has_settled(self, now_s: float) -> bool:
        waited = now_s - self._began_s >= self._settings.warmup_s
        return waited and self._arrivals.ramped_up(len(self._ended))

    def _is_over(self) -> bool:
        all_submitted = self._num_submitted == self._settings.max_requests
        if not self._arrivals.steady:
            return self._num_submitted > 0 and not self._in_flight
        if self._start is None:
            if all_submitted:
                raise ConfigError(
                    "max_requests", self._num_submitted, "too few: they ran out before the load settled"
                )
            return False
        return all_submitted or self._clock() - self._start.time_s >= self._settings.window_s

    def _give_up_on_what_hangs(self, now_s: float) -> None:
        if self._num_failed >= HOPELESS and self._num_failed == len(self._ended) and not self._arrivals.open:
            raise EngineError(f"all of the first {self._num_failed} requests failed: {self._ended[0].error}")
        if not self._in_flight:
            self._last_end_s = now_s
        if now_s - self._last_end_s > self._settings.stall_s:
            raise UnavailableError(f"no request has ended for {self._settings.stall_s:g} s; {self._line(now_s)}")
        if now_s - self._began_s > self._settings.timeout_s:
            raise UnavailableError(
                f"the load has not ended within {self._settings.timeout_s:g} s; {self._line(now_s)}"
            )

    def _edge(self) -> Edge:
        self._sample()
        return Edge(self._clock(), time.process_time(), self._router.snapshot())

    def _sample(self) -> None:
        self._router.flush()  # or what was just submitted would count as waiting
        view = merge([self._router.snapshot()], self._node_names)
        self._samples.append(model_counters(view, self._model, self._clock()))

    def _line(self, now_s: float) -> str:
        phase = "warming up" if self._start is None else "measuring"
        ended, failed = len(self._ended), f", {self._num_failed} FAILED" if self._num_failed else ""
        return (
            f"{self._model} under {self._workload.name}, {self._arrivals}: {phase}, {now_s - self._began_s:.0f} s, "
            f"{ended} requests ended{failed}, {len(self._in_flight)} in flight"
        )

    def _abort_rest(self) -> None:
        for request_id in self._in_flight:
            self._router.abort(request_id)
        self._router.flush()
