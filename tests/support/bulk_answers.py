"""A bulk sink that keeps what it gets."""

from dataclasses import dataclass, field

import numpy as np
from nfold.deployments.router import Router
from nfold.models.engine.protocol import I32, U8, U64, FinishReason
from numpy.typing import NDArray


@dataclass
class BulkAnswers:
    """By tag. `fails` makes it raise when it is next called."""

    first_s: dict[int, float] = field(default_factory=dict)
    num_tokens: dict[int, int] = field(default_factory=dict)
    finish: dict[int, FinishReason] = field(default_factory=dict)
    num_calls: int = 0
    fails: bool = False

    def progress(
        self, first: NDArray[np.int64], done: NDArray[np.int64], num_tokens: I32, finish: U8, now_s: float
    ) -> None:
        self.num_calls += 1
        if self.fails:
            raise RuntimeError("client gone")
        for tag in first.tolist():
            assert tag not in self.first_s, "a first token twice"
            self.first_s[tag] = now_s
        for tag, count, reason in zip(done.tolist(), num_tokens.tolist(), finish.tolist(), strict=True):
            assert tag not in self.finish, "an end twice"
            self.num_tokens[tag] = count
            self.finish[tag] = FinishReason(reason)


def ask_bulk(
    router: Router,
    num_tokens: list[int],
    answers: BulkAnswers,
    *,
    prompt_len: int = 2,
    first_tag: int = 0,
    model: str = "m",
) -> U64:
    """One request for each of `num_tokens`, tagged in order; prompt i is `prompt_len` times i."""
    count = len(num_tokens)
    return router.submit_bulk(
        model,
        np.repeat(np.arange(count, dtype=np.int32), prompt_len),
        np.full(count, prompt_len, np.int32),
        np.array(num_tokens, np.int32),
        np.arange(count, dtype=np.uint64),
        np.arange(first_tag, first_tag + count),
        answers,
        ignore_eos=True,
    )
