"""Requests as they came, kept to be replayed: when, how long their prompts, how long their answers. No texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..models.engine.simulated.lengths import Lengths
from .load_result import Answer

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """N requests in the order in which they came; all arrays [N].

    Attributes:
        arrivals_s: growing, the first at 0.
        prompt_lens: tokens.
        answer_lens: tokens.
        source: how it came about; `generated ...` when nothing was recorded.
    """

    arrivals_s: F64
    prompt_lens: I32
    answer_lens: I32
    source: str

    def __len__(self) -> int:
        return len(self.arrivals_s)

    @property
    def num_output_tokens(self) -> int:
        return int(self.answer_lens.sum())

    def save(self, path: Path) -> None:
        """As npz; arrival times to the microsecond."""
        gaps_us = np.diff(np.rint(self.arrivals_s * 1e6).astype(np.int64), prepend=0)
        np.savez_compressed(
            path,
            gaps_us=gaps_us.astype(np.uint32),
            prompt_lens=self.prompt_lens.astype(np.uint32),
            answer_lens=self.answer_lens.astype(np.uint32),
            source=np.array(self.source),
        )

    @classmethod
    def load(cls, path: Path) -> "Recording":
        with np.load(path, allow_pickle=False) as file:
            return cls(
                arrivals_s=np.cumsum(file["gaps_us"], dtype=np.int64) / 1e6,
                prompt_lens=file["prompt_lens"].astype(np.int32),
                answer_lens=file["answer_lens"].astype(np.int32),
                source=str(file["source"]),
            )

    @classmethod
    def of_answers(cls, answers: Sequence[Answer], prompt_lens: Sequence[int], source: str) -> "Recording":
        """Of a run's answers that ended well.

        Args:
            prompt_lens: of the workload's prompts, by `Answer.index`.
        """
        good = sorted((answer for answer in answers if answer.ok), key=lambda answer: answer.due_s)
        due_s = np.array([answer.due_s for answer in good], np.float64)
        return cls(
            arrivals_s=due_s - due_s[:1].sum(),
            prompt_lens=np.array([prompt_lens[answer.index] for answer in good], np.int32),
            answer_lens=np.array([len(answer.token_ids) for answer in good], np.int32),
            source=source,
        )


def generated(lengths: Lengths, count: int, requests_per_s: float | None, seed: int) -> Recording:
    """Poisson arrivals at that rate, or all at once; lengths by their distributions. The same for the same seed."""
    random = np.random.default_rng(seed)
    arrivals_s = np.zeros(count)
    if requests_per_s is not None:
        arrivals_s[1:] = np.cumsum(random.exponential(1.0 / requests_per_s, count - 1))
    rate = "all at once" if requests_per_s is None else f"Poisson, {requests_per_s:g}/s"
    return Recording(
        arrivals_s=arrivals_s,
        prompt_lens=lengths.prompt.sample(count, random),
        answer_lens=lengths.answer.sample(count, random),
        source=f"generated: {rate}, seed {seed}",
    )
