"""Drives a router with arrays of requests and keeps what became of each, with a few operations per message.

due ─> submit_bulk, all that is due at once ─> router.poll ─> progress: first tokens and ends, as arrays
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from control_plane_cpu import CpuMeter, CpuSeconds
from control_plane_requests import F64, Prompts, Requests
from nfold.cluster.service import Progress
from nfold.deployments.heap import settle_heap
from nfold.deployments.router import Router
from nfold.models.engine.protocol import I32, U8, FinishReason
from numpy.typing import NDArray

I64 = NDArray[np.int64]

# What is due is submitted at most so often; messages are handled as they come.
SUBMIT_EVERY_S = 0.005
POLL_S = 0.05
TELL_EVERY_S = 5.0
SAMPLE_EVERY_S = 0.5
MAX_TOKENS_AT_ONCE = 1 << 20
_FAILED = (FinishReason.ERROR, FinishReason.ABORT)


@dataclass(frozen=True, slots=True)
class Mark:
    """Totals at one moment of a run.

    Attributes:
        at_s: since its start.
        num_tokens: output tokens that have come.
        num_steps: of all engines, as last told by them.
    """

    at_s: float
    cpu: CpuSeconds
    num_tokens: int
    num_ended: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two marks."""

    begin: Mark
    end: Mark

    @property
    def seconds(self) -> float:
        return self.end.at_s - self.begin.at_s

    @property
    def num_tokens(self) -> int:
        return self.end.num_tokens - self.begin.num_tokens

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def queries_per_s(self) -> float:
        """Answered to the end."""
        return (self.end.num_ended - self.begin.num_ended) / self.seconds

    @property
    def steps_per_s(self) -> float:
        return (self.end.num_steps - self.begin.num_steps) / self.seconds

    @property
    def cpu(self) -> CpuSeconds:
        return self.end.cpu - self.begin.cpu


class Drive:
    """One router, one model, one load. It is also the `BulkSink` of its requests.

    Attributes (N requests):
        first_s: [N] when the first token came, after the start; NaN before.
        end_s: [N] when it ended.
        num_tokens: [N] of its answer, once ended.

    Args:
        max_open: requests submitted and not ended at any time; None submits whatever is due.
    """

    def __init__(
        self,
        router: Router,
        model: str,
        requests: Requests,
        prompts: Prompts,
        *,
        max_open: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests = requests
        self.first_s = np.full(len(requests), np.nan)
        self.end_s = np.full(len(requests), np.nan)
        self.num_tokens = np.zeros(len(requests), np.int32)
        self.num_submitted = self.num_ended = self.num_failed = 0
        self._router = router
        self._model = model
        self._prompts = prompts
        self._max_open = len(requests) if max_open is None else max_open
        self._clock = clock
        self._start_s = clock()
        self._submit_s = -inf
        self._tokens_before = self._tokens_of_router()

    def start(self) -> None:
        """The requests' time begins now."""
        self._start_s = self._clock()

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._start_s

    @property
    def ended(self) -> bool:
        """Everything was submitted and has ended."""
        return self.num_ended == len(self.requests)

    def progress(self, first: I64, done: I64, num_tokens: I32, finish: U8, now_s: float) -> None:
        """See `BulkSink`."""
        at_s = now_s - self._start_s
        self.first_s[first] = at_s
        if len(done):
            self.end_s[done] = at_s
            self.num_tokens[done] = num_tokens
            self.num_ended += len(done)
            self.num_failed += int(np.isin(finish, _FAILED).sum())

    def queue_backlog(self) -> None:
        """Submit all that may be open before any of it is sent, as an Offline query comes. In portions, engines
        would begin with nearly empty batches, whose short steps are more than a small machine can simulate."""
        while self._submit():
            pass

    def submit_due(self) -> None:
        """All that is due, unless that was done a moment ago."""
        if self.elapsed_s - self._submit_s >= SUBMIT_EVERY_S:
            self._submit()

    def _submit(self) -> bool:
        """What is due now, or a portion of it. False when there is nothing."""
        now_s, first = self.elapsed_s, self.num_submitted
        if first == len(self.requests):
            return False
        last = int(np.searchsorted(self.requests.due_s, now_s, side="right"))
        last = min(last, self.num_ended + self._max_open)
        if last <= first:
            return False
        self._submit_s = now_s
        wanted = self.requests
        lens = wanted.prompt_lens[first:last]
        ends = np.cumsum(lens)
        if ends[-1] > MAX_TOKENS_AT_ONCE:
            last = first + max(1, int(np.searchsorted(ends, MAX_TOKENS_AT_ONCE)))
            lens = lens[: last - first]
        self._router.submit_bulk(
            self._model,
            self._prompts.take(int(lens.sum())),
            lens,
            wanted.max_tokens[first:last],
            wanted.seeds[first:last],
            np.arange(first, last),
            self,
        )
        self.num_submitted = last
        return True

    def next_due_s(self) -> float:
        """Seconds until the next request may be due."""
        if self.num_submitted == len(self.requests):
            return POLL_S
        until_s = float(self.requests.due_s[self.num_submitted]) - self.elapsed_s
        if until_s > 0:
            return min(POLL_S, until_s)
        is_full = self.num_submitted >= self.num_ended + self._max_open
        return POLL_S if is_full else SUBMIT_EVERY_S

    def turn(self, wait: bool = True) -> None:
        """Submit what is due, then handle messages, for the first of which it waits when `wait`."""
        self.submit_due()
        self._router.poll(self.next_due_s() if wait else 0.0)

    def mark(self, meter: CpuMeter) -> Mark:
        replicas = self._router.snapshot().replicas
        return Mark(
            at_s=self.elapsed_s,
            cpu=meter.read(),
            num_tokens=self.tokens_so_far(),
            num_ended=self.num_ended,
            num_steps=sum(replica.status.stats.total_steps for replica in replicas if replica.status),
        )

    def tokens_so_far(self) -> int:
        """Output tokens that have come."""
        return self._tokens_of_router() - self._tokens_before

    def waits_for_first(self, begin_s: float, end_s: float) -> bool:
        """Whether a request that came in that time has no token yet."""
        return bool(np.isnan(self.first_s[self._rows(begin_s, end_s)]).any())

    def ttft_s(self, begin_s: float, end_s: float) -> F64:
        """[M] of the requests that came in [begin_s, end_s); infinite where no token came."""
        rows = self._rows(begin_s, end_s)
        return np.nan_to_num(self.first_s[rows] - self.requests.due_s[rows], nan=inf)

    def tpot_s(self, begin_s: float, end_s: float) -> F64:
        """[M] per token after the first, of the answers that ended in [begin_s, end_s)."""
        with np.errstate(invalid="ignore"):
            rows = np.flatnonzero((self.end_s >= begin_s) & (self.end_s < end_s) & (self.num_tokens > 1))
        return (self.end_s[rows] - self.first_s[rows]) / (self.num_tokens[rows] - 1)

    def finite_tokens_per_s(self) -> float:
        """All tokens over the time at which the last answer ended, as LoadGen counts an Offline run."""
        return float(self.num_tokens.sum() / np.nanmax(self.end_s))

    def _rows(self, begin_s: float, end_s: float) -> slice:
        first, last = np.searchsorted(self.requests.due_s, (begin_s, end_s))
        return slice(int(first), int(last))

    def _tokens_of_router(self) -> int:
        return sum(model.num_output_tokens for model in self._router.snapshot().models)


def run_windows(
    drives: Sequence[Drive],
    meter: CpuMeter,
    warmup_s: float,
    window_s: float,
    progress: Progress,
    *,
    settle_s: float = 30.0,
) -> list[Window]:
    """Drive loads side by side to the window's end, then until its requests all have a first token.

    Args:
        settle_s: longest for the latter.

    Returns:
        Each one's window. CPU seconds are those of all together.
    """
    settle_heap()
    for drive in drives:
        drive.start()
    teller = _Teller(drives, progress)
    _turn_until(drives, warmup_s, teller)
    begins = [drive.mark(meter) for drive in drives]
    _turn_until(drives, warmup_s + window_s, teller)
    ends = [drive.mark(meter) for drive in drives]
    lead, give_up_s = drives[0], warmup_s + window_s + settle_s
    while lead.elapsed_s < give_up_s and any(
        drive.waits_for_first(warmup_s, warmup_s + window_s) for drive in drives
    ):
        _turn_until(drives, lead.elapsed_s + 0.1, teller)
    return [Window(begin, end) for begin, end in zip(begins, ends, strict=True)]


def run_to_end(drives: Sequence[Drive], progress: Progress, timeout_s: float) -> list[F64]:
    """Drive loads side by side until every request has ended.

    Returns:
        For each load, [K, 2]: seconds, and tokens that had come by then, about twice a second.

    Raises:
        TimeoutError: that lasts longer than `timeout_s`.
    """
    for drive in drives:
        drive.start()
        drive.queue_backlog()
    teller = _Teller(drives, progress)
    samples: list[list[tuple[float, int]]] = [[] for _ in drives]
    while not all(drive.ended for drive in drives):
        if drives[0].elapsed_s > timeout_s:
            raise TimeoutError(f"not all requests have ended after {timeout_s:.0f} s")
        _turn_until(drives, drives[0].elapsed_s + SAMPLE_EVERY_S, teller)
        for drive, kept in zip(drives, samples, strict=True):
            kept.append((drive.elapsed_s, drive.tokens_so_far()))
    return [np.array(kept, np.float64) for kept in samples]


def saturated_tokens_per_s(samples: F64) -> float:
    """Of `run_to_end`, between 20 % and 80 % of the tokens: without ramp and tail."""
    seconds, tokens = samples[:, 0], samples[:, 1]
    low, high = np.searchsorted(tokens, (0.2 * tokens[-1], 0.8 * tokens[-1]))
    return float((tokens[high] - tokens[low]) / max(seconds[high] - seconds[low], 1e-9))


class _Teller:
    """A line for people every few seconds."""

    def __init__(self, drives: Sequence[Drive], progress: Progress) -> None:
        self._drives = drives
        self._progress = progress
        self._last = (0.0, 0)

    def tell(self) -> None:
        now_s, (then_s, tokens_then) = self._drives[0].elapsed_s, self._last
        if now_s - then_s < TELL_EVERY_S:
            return
        tokens = sum(drive.tokens_so_far() for drive in self._drives)
        submitted = sum(drive.num_submitted for drive in self._drives)
        num_open = submitted - sum(drive.num_ended for drive in self._drives)
        self._last = now_s, tokens
        rate = (tokens - tokens_then) / (now_s - then_s)
        self._progress(
            f"{now_s:5.0f} s  {rate:11,.0f} tokens/s (simulated)  {submitted:9,} asked  {num_open:8,} open"
        )


def _turn_until(drives: Sequence[Drive], until_s: float, teller: _Teller) -> None:
    lead = drives[0]
    while lead.elapsed_s < until_s:
        if len(drives) == 1:
            lead.turn()
        else:
            for drive in drives:
                drive.turn(wait=False)
            time.sleep(SUBMIT_EVERY_S)
        teller.tell()
