"""May one more request start? Looks ahead to the step at which the running ones together hold the most blocks.

    blocks │      /|         a request grows by a token each step and gives its blocks back at its end. What must
           │   /|/ |/|       fit is the highest point ahead: less than the sum of all final sizes, as requests end
           │  / |    |/      one after the other, and more than what they hold now.
           └──────────── steps
The highest point lies right before some request's end, so only the ends are looked at (Past-Future scheduler, Gong
et al., ASPLOS 2025). How long answers will be is learned from those that ended. A wrong guess costs a preemption.

Legend: R requests, E ends looked at.
"""

import numpy as np
from numpy.typing import NDArray

from .slots import I64, SlotTable

_LEARNING_RATE = 0.05
_PREEMPTION_STEP = 0.2
_MAX_ENDS = 64  # looked at, of any number of requests: keeps the cost of a look at some ten microseconds


class AnswerShare:
    """The share of their allowed answer that requests use, as lately seen."""

    def __init__(self) -> None:
        self.value = 0.5

    def saw_end(self, num_answered: int, num_allowed: int) -> None:
        self.value += _LEARNING_RATE * (num_answered / num_allowed - self.value)

    def saw_preemption(self) -> None:
        """The guess was too low."""
        self.value += _PREEMPTION_STEP * (1 - self.value)


class Outlook:
    """What the running requests will need, and then those that are admitted on top, in one step.

    Args:
        slots: of the running requests.
        share: of their remaining allowance that they will use.
        num_free: blocks that are free before any admission.
    """

    def __init__(self, table: SlotTable, slots: I64, share: float, num_free: int) -> None:
        self._block_size = table.block_size
        self._share = share
        self._num_free = num_free
        num_tokens, num_held = table.num_tokens[slots], table.num_blocks[slots]
        num_ahead = np.floor(share * (table.max_num_tokens[slots] - num_tokens))
        num_own = num_held - table.num_shared_blocks[slots]
        self._requests = [np.array([num_ahead, num_tokens, num_held, num_own], np.float64)]
        self._total_growth = int((np.ceil((num_tokens + num_ahead) / table.block_size) - num_held).sum())

    def admits(self, num_tokens: int, max_num_tokens: int, num_held: int) -> bool:
        """Whether one more request fits; if so it counts from now on. Of its blocks, `num_held` are shared with
        running ones.

        What fits has room for all its known tokens now: as no request holds more than it needs, the first end
        looked at says so. With nothing running everything fits.
        """
        num_ahead = int(self._share * (max_num_tokens - num_tokens))
        total_growth = self._total_growth - (-(num_tokens + num_ahead) // self._block_size) - num_held
        requests = [*self._requests, np.array([[num_ahead], [num_tokens], [num_held], [0]], np.float64)]
        if total_growth > self._num_free:  # with room for everybody's end there is no need to look closer
            requests = [np.concatenate(requests, axis=1)]
            if peak_growth(requests[0], self._block_size) > self._num_free:
                return False
        self._requests, self._total_growth = requests, total_growth
        return True


def peak_growth(requests: NDArray[np.float64], block_size: int) -> int:
    """Most blocks that the requests will hold together beyond what they hold now.

    Columns are requests; rows are: tokens still to come, tokens known, blocks held, blocks that nobody else holds.
    """
    num_ahead_R, num_tokens_R, num_held_R, num_own_R = requests
    ends_E1 = np.unique(num_ahead_R)[:: -(-len(num_ahead_R) // _MAX_ENDS), None]
    growth_ER: NDArray[np.float64] = np.ceil((num_tokens_R + ends_E1) / block_size) - num_held_R
    growth_ER = np.where(num_ahead_R >= ends_E1, growth_ER, -num_own_R)
    return int(growth_ER.sum(axis=1).max())
