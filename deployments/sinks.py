"""Where the news of requests go: a function per request, or one object for many."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import I32, U8, FinishReason, StepOutputs
from .index_pool import Indices

NO_BULK_SINK = -1


@dataclass(slots=True)
class TokenChunk:
    """News of one request.

    Attributes:
        token_ids: new tokens, in order; each token comes once.
        finish: not NONE in the last chunk only.
        num_prompt_tokens: of the request as submitted.
        logprobs: one per token when asked for.
        top_ids, top_logprobs: per token, the alternatives asked for.
        error: what went wrong, when `finish` is ERROR.
    """

    token_ids: list[int]
    finish: FinishReason
    num_prompt_tokens: int
    logprobs: list[float] | None = None
    top_ids: list[list[int]] | None = None
    top_logprobs: list[list[float]] | None = None
    error: str = ""


Sink = Callable[[TokenChunk], None]


class BulkSink(Protocol):
    """Takes the news of many requests at once, each known by its tag."""

    def progress(self, first: Indices, done: Indices, num_tokens: I32, finish: U8, now_s: float) -> None:
        """Called when messages bring such news, once for all of a turn; must not block, and may submit and abort.

        Args:
            first: tags of the requests whose first token came.
            done: tags of those that ended.
            num_tokens: emitted tokens of each that ended.
            finish: FinishReason of each that ended.
            now_s: the router's clock.
        """
        ...


@dataclass(slots=True, eq=False)
class Request:
    """What an ordinary request has beside its row in the table.

    Attributes:
        num_top: alternatives per token, when logprobs are wanted, else None.
        num_delivered: tokens that its sink has had.
        logprobs, top_ids, top_logprobs: not yet delivered.
    """

    request_id: int
    sink: Sink
    stream: bool
    num_prompt_tokens: int
    num_top: int | None
    num_delivered: int = 0
    logprobs: list[float] = field(default_factory=list)
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)

    def keep_logprobs(self, outputs: StepOutputs, row: int) -> None:
        """Those of one token, until it is delivered."""
        assert self.num_top is not None
        self.logprobs.append(float(outputs.logprobs[row]))
        self.top_ids.append(outputs.top_ids[row, : self.num_top].tolist())
        self.top_logprobs.append(outputs.top_logprobs[row, : self.num_top].tolist())

    def chunk(self, token_ids: list[int], finish: FinishReason, error: str = "") -> TokenChunk:
        """The next one, with what was kept."""
        self.num_delivered += len(token_ids)
        chunk = TokenChunk(token_ids, finish, self.num_prompt_tokens, error=error)
        if self.num_top is not None:
            chunk.logprobs, chunk.top_ids, chunk.top_logprobs = self.logprobs, self.top_ids, self.top_logprobs
            self.logprobs, self.top_ids, self.top_logprobs = [], [], []
        return chunk


class BulkSinks:
    """The bulk sinks with requests in the table, by the number that the table knows them by."""

    def __init__(self) -> None:
        self._sinks: dict[int, BulkSink] = {}
        self._numbers: dict[int, int] = {}
        self._num_requests: dict[int, int] = {}
        self._next = 0

    def __getitem__(self, number: int) -> BulkSink:
        return self._sinks[number]

    def number_of(self, sink: BulkSink) -> int | None:
        return self._numbers.get(id(sink))

    def add(self, sink: BulkSink, num_requests: int) -> int:
        """So many more of its requests; its number."""
        number = self._numbers.get(id(sink))
        if number is None:
            number = self._next
            self._next += 1
            self._numbers[id(sink)] = number
            self._sinks[number] = sink
            self._num_requests[number] = 0
        self._num_requests[number] += num_requests
        return number

    def remove(self, numbers: NDArray[np.int32]) -> None:
        """One request less of each; NO_BULK_SINK counts for none."""
        if not self._sinks:
            return
        if len(numbers) and (numbers == numbers[0]).all():
            self._leave(int(numbers[0]), len(numbers))
            return
        for number, count in zip(*(part.tolist() for part in np.unique(numbers, return_counts=True)), strict=True):
            self._leave(number, count)

    def _leave(self, number: int, count: int) -> None:
        if number == NO_BULK_SINK:
            return
        self._num_requests[number] -= count
        if self._num_requests[number] == 0:
            del self._numbers[id(self._sinks.pop(number))]
            del self._num_requests[number]
