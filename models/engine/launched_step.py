"""A step that the device computes: what came in, and what will come out once it is read.

    host     | launch k | launch k+1 | read k | launch k+2 | read k+1 |
    device              | compute k            | compute k+1          |

Legend: R sequences that get a new token, L late ones among a step's input tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .protocol import I32
from .sampler import Logprobs, LogprobsOnDevice
from .scheduler import Schedule
from .slots import I64, LateTokens, SlotTable
from .transfer import HostCopy, to_device


@dataclass(frozen=True, slots=True)
class LateInputs:
    """Input tokens that the step before brings: they go from its output to this step's input on the device.

    Attributes:
        rows_L: int64 [L], of this step's input tokens.
        token_ids_L: int64 [L].
    """

    rows_L: torch.Tensor
    token_ids_L: torch.Tensor

    def fill(self, token_ids_T: torch.Tensor) -> None:
        token_ids_T.index_copy_(0, self.rows_L, self.token_ids_L)


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """
    Attributes:
        late: the rows of the output.
        token_ids_R: int64 [R] on the device; a graph's next replay overwrites it.
        start_s: when it was launched, on time.perf_counter's clock.
        num_kv_tokens: see `StepRecord`.
    """

    schedule: Schedule
    late: LateTokens
    token_ids_R: torch.Tensor
    start_s: float
    num_kv_tokens: int
    host_ids_R: HostCopy
    logprobs: LogprobsOnDevice | None

    def read(self) -> tuple[I32, Logprobs]:
        """Token ids [R] and log-probabilities; waits until the device has them."""
        token_ids_R = self.host_ids_R.read().numpy().astype(np.int32)
        logprobs = Logprobs.none(len(token_ids_R)) if self.logprobs is None else self.logprobs.read()
        return token_ids_R, logprobs

    def late_inputs(self, table: SlotTable, schedule: Schedule) -> LateInputs | None:
        """Of the next step, which `schedule` says: its tokens that this one brings."""
        (sequences,) = np.nonzero(table.num_late[schedule.slots])
        if len(sequences) == 0:
            return None
        row_of_slot = np.zeros(len(table.num_late), np.int64)
        row_of_slot[self.late.slots] = np.arange(len(self.late))
        rows_L: I64 = np.cumsum(schedule.num_new_tokens)[sequences] - 1
        device = self.token_ids_R.device
        sources_L = to_device(row_of_slot[schedule.slots[sequences]], device)
        return LateInputs(to_device(rows_L, device), self.token_ids_R[sources_L])
