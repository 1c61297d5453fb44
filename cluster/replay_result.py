"""What came of a replay."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ledger import ModelCounters
from .recording import Recording

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ReplayResult:
    """What came of it; simulated. Arrays are [N] by request but for `last_end_s`, [K] by replica.

    Attributes:
        replica: who served each.
        first_s, end_s: of its tokens, on the recording's clock.
        last_end_s: when each replica was done; 0 when it got nothing.
        request_s: [K] from hand-over to the end, mean.
        num_preemptions: of all replicas.
        samples: counters for the ledger, one a second. The yardstick of a replica is its profile's name.
    """

    recording: Recording
    replica: I64
    first_s: F64
    end_s: F64
    last_end_s: F64
    request_s: F64
    num_preemptions: int
    samples: tuple[ModelCounters, ...]

    @property
    def makespan_s(self) -> float:
        return float(self.end_s.max())

    @property
    def tokens_per_s(self) -> float:
        return self.recording.num_output_tokens / self.makespan_s

    def latency_s(self, percentile: float) -> float:
        """From arrival to the last token."""
        return float(np.percentile(self.end_s - self.recording.arrivals_s, percentile))

    def ttft_s(self, percentile: float) -> float:
        return float(np.percentile(self.first_s - self.recording.arrivals_s, percentile))

    def goodput(self, *, ttft_s: float, tpot_s: float) -> float:
        """Output tokens/s of the requests within both limits."""
        answer_lens = self.recording.answer_lens
        per_token_s = (self.end_s - self.first_s) / np.maximum(answer_lens - 1, 1)
        good = (self.first_s - self.recording.arrivals_s <= ttft_s) & (per_token_s <= tpot_s)
        return float(answer_lens[good].sum()) / self.makespan_s
