"""May one more request start? Looks ahead to the step at which the running ones together hold the most blocks.

    blocks │      /|         a request grows by a token each step and gives its blocks back at its end. What must
           │   /|/ |/|       fit is the highest point ahead: less than the sum of all final sizes, as requests end
           │  / |    |/      one after the other, and more than what they hold now.
           └──────────── steps
The highest point lies right before some request's end, so only the ends are looked at (Past-Future scheduler, Gong
et al., ASPLOS 2025). How long answers will be is learned from those that ended. A wrong guess costs a preemption.
"""

import numpy as np
from numpy.typing import NDArray

from .slots import I64, SlotTable

_LEARNING_RATE = 0.05
_PREEMPTION_STEP = 0.2


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
    """

    def __init__(self, table: SlotTable, slots: I64, share: float) -> None:
        self._block_size = table.block_size
        self._share = share
        num_tokens, num_held = table.num_tokens[slots], table.num_blocks[slots]
        num_ahead = share * (table.max_num_tokens[slots] - num_tokens)
        num_own = num_held - table.num_shared_blocks[slots]
        self._requests: list[NDArray[np.float64]] = [
            np.array([num_ahead, num_tokens, num_held, num_own], np.float64)
        ]
        self._total_growth = float(((num_tokens + num_ahead) / table.block_size + 1 - num_held).sum())

    def admits(self, num_tokens: int, max_num_tokens: int, num_shared: int, num_free: int) -> bool:
        """Whether a request that finds `num_shared` blocks in the prefix cache fits; if so it counts from now on.

        `num_free` blocks are free now, those of the prefix cache that it would take not among them.
        """
        num_ahead = self._share * (max_num_tokens - num_tokens)
        total_growth = self._total_growth + (num_tokens + num_ahead) / self._block_size + 1 - num_shared
        requests = [*self._requests, np.array([[num_ahead], [num_tokens], [num_shared], [0]])]
        if total_growth > num_free:  # with room for everybody's end there is no need to look closer
            requests = [np.concatenate(requests, axis=1)]
            if peak_growth(requests[0], self._block_size) > num_free:
                return False
        self._requests, self._total_growth = requests, total_growth
        return True


def peak_growth(requests: NDArray[np.float64], block_size: int) -> float:
    """Most blocks that the requests will hold together beyond what they hold now.

    Columns are requests; rows are: tokens still to come, tokens known, blocks held, blocks that nobody else holds.
    """
    num_ahead, num_tokens, num_held, num_own = requests[:, np.argsort(-requests[0])]
    count = np.arange(1, len(num_ahead) + 1)
    half_block = (block_size - 1) / 2  # the last block of a request is half full on average
    at_end = (np.cumsum(num_tokens) + count * (num_ahead + half_block)) / block_size
    given_back = num_own.sum() - np.cumsum(num_own)
    return float((at_end - np.cumsum(num_held) - given_back).max())
