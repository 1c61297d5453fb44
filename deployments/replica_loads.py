"""What the router reckons with for each replica, in arrays by the replica's number, so that a flush over hundreds
of replicas costs a few array operations."""

import numpy as np
from numpy.typing import NDArray

from ..models.compiled import bools, compiled, f64s, i64s
from .clumping import WayIn
from .index_pool import IndexPool, Indices

F64 = NDArray[np.float64]
NEVER = np.inf


class ReplicaLoads:
    """Columns by replica number.

    Attributes:
        accepts: it takes new requests.
        limit: requests that it may hold, of all routers.
        num_in_flight: requests of this router that it holds or that are bound to it.
        num_others: requests of other routers that it holds, as last told.
        prompt_tokens, output_tokens: not yet seen computed, this router's; output tokens as expected.
        num_prompt_tokens: of all requests whose first token came from it, since it was added.
        slowness: its factor on its pool's step times.
        delay_s: one way to it.
        send_at_s: when what is bound to it is to be sent; NEVER when there is nothing.
        intake_s, intake_every_s: when its engine takes in requests, see `WayIn`.

    `has_news` says that there may be room where there was none; who looked at all sets it back.
    """

    def __init__(self, num_replicas: int = 16) -> None:
        n = num_replicas
        self.accepts: NDArray[np.bool_] = np.zeros(n, np.bool_)
        self.limit: Indices = np.zeros(n, np.int64)
        self.num_in_flight: Indices = np.zeros(n, np.int64)
        self.num_others: Indices = np.zeros(n, np.int64)
        self.prompt_tokens: F64 = np.zeros(n)
        self.output_tokens: F64 = np.zeros(n)
        self.num_prompt_tokens: Indices = np.zeros(n, np.int64)
        self.slowness: F64 = np.ones(n)
        self.delay_s: F64 = np.zeros(n)
        self.send_at_s: F64 = np.full(n, NEVER)
        self.intake_s: F64 = np.full(n, -NEVER)
        self.intake_every_s: F64 = np.zeros(n)
        self.has_news = True
        self._numbers = IndexPool(n)

    def add(self, limit: int) -> int:
        """The number of one more replica."""
        if self._numbers.num_free == 0:
            size = 2 * len(self.limit)
            for name, column in list(vars(self).items()):
                if isinstance(column, np.ndarray):
                    fill = NEVER if name == "send_at_s" else 0
                    setattr(self, name, np.concatenate([column, np.full_like(column, fill)]))
            self._numbers.grow(size)
        number = self._numbers.take_one()
        self.clear(number)
        self.limit[number] = limit
        self.num_prompt_tokens[number] = 0
        self.slowness[number] = 1.0
        self.delay_s[number] = 0.0
        return number

    def remove(self, number: int) -> None:
        """Its number may be given again."""
        self.clear(number)
        self.set_accepts(number, False)
        self._numbers.give(np.array([number]))

    def set_accepts(self, number: int, accepts: bool) -> None:
        self.accepts[number] = accepts
        self.has_news = True

    def set_others(self, number: int, num_others: int) -> None:
        if self.num_others[number] != num_others:
            self.num_others[number] = num_others
            self.has_news = True

    def clear(self, number: int) -> None:
        """It holds nothing."""
        self.has_news = True
        self.num_in_flight[number] = 0
        self.num_others[number] = 0
        self.prompt_tokens[number] = self.output_tokens[number] = 0.0
        self.send_at_s[number] = NEVER
        self.intake_s[number] = -NEVER

    def room(self, numbers: Indices) -> tuple[Indices, Indices, int]:
        """Which of these take requests, by their place here; how many each may take now (0 or less is none); and
        how many all of them may."""
        return _room(numbers, self.accepts, self.limit, self.num_in_flight, self.num_others)

    def num_held(self, numbers: Indices) -> Indices:
        """Requests of all routers that each holds."""
        return self.num_in_flight[numbers] + self.num_others[numbers]

    def backlog(self, numbers: Indices, mean_prompt: float, mean_output: float) -> tuple[F64, F64]:
        """Prompt and output tokens that each has to compute. The means are reckoned for each request of others."""
        others = self.num_others[numbers]
        # Answers may be longer than expected.
        own: F64 = np.maximum(self.output_tokens[numbers], self.num_in_flight[numbers])
        return self.prompt_tokens[numbers] + others * mean_prompt, own + others * mean_output

    def way_in(self, numbers: Indices) -> WayIn:
        return WayIn(self.intake_s[numbers], self.intake_every_s[numbers], self.delay_s[numbers])

    def bind(self, numbers: Indices, prompt_tokens: Indices, output_tokens: F64) -> None:
        """Requests with so many tokens are bound to these replicas, one each; a replica may come several times."""
        _bind(numbers, prompt_tokens, output_tokens, *self.outstanding())

    def outstanding(self) -> tuple[Indices, F64, F64]:
        """The columns that say what each replica has outstanding, for `request_loops`."""
        return self.num_in_flight, self.prompt_tokens, self.output_tokens


@compiled(i64s, bools, i64s, i64s, i64s)
def _room(
    numbers: Indices, accepts: NDArray[np.bool_], limit: Indices, num_in_flight: Indices, num_others: Indices
) -> tuple[Indices, Indices, int]:
    rows, room = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
    num_rows = total = 0
    for row in range(len(numbers)):
        k = numbers[row]
        if accepts[k]:
            rows[num_rows], room[num_rows] = row, limit[k] - num_in_flight[k] - num_others[k]
            total += max(room[num_rows], 0)
            num_rows += 1
    return rows[:num_rows], room[:num_rows], total


@compiled(i64s, i64s, f64s, i64s, f64s, f64s)
def _bind(
    numbers: Indices, prompts: Indices, outputs: F64, num_in_flight: Indices, prompt_tokens: F64, output_tokens: F64
) -> None:
    for i in range(len(numbers)):
        k = numbers[i]
        num_in_flight[k] += 1
        prompt_tokens[k] += prompts[i]
        output_tokens[k] += outputs[i]
