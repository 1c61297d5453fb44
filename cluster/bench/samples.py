"""Samples of a workload as arrays, so that a query of any size is taken out of them at once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...models.engine.protocol import I32, U64
from ...models.errors import ConfigError

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class SampleSet:
    """N samples; all prompts are slices of one row of tokens, which may overlap.

    Attributes:
        name: of the data set; one that was made up says `synthetic`.
        source: the file, or how it was made.
        synthetic: made up by lengths alone, so that answers mean nothing.
        tokens: [P] ids.
        starts: [N] where each prompt begins in `tokens`.
        prompt_lens: [N].
        max_tokens: [N] most tokens of each answer.
        seeds: [N].
        temperature: of all samples; 0 is greedy.
        ignore_eos: answers have `max_tokens` tokens, whatever the model would say.
        answer_lens: [N] how long each answer must be, where that is known; shorter ones are failures.
        references: text that answers are held against, one per sample; empty where there is none.
        subsets: which part of the set each sample belongs to, for metrics that count parts apart; empty for none.
    """

    name: str
    source: str
    synthetic: bool
    tokens: I32
    starts: I64
    prompt_lens: I32
    max_tokens: I32
    seeds: U64
    temperature: float = 0.0
    ignore_eos: bool = False
    answer_lens: I32 | None = None
    references: Sequence[str] = ()
    subsets: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.starts) == 0:
            raise ConfigError("samples", 0, f"{self.name} has no samples; at least one is needed")
        assert len(self.starts) == len(self.prompt_lens) == len(self.max_tokens) == len(self.seeds)

    def __len__(self) -> int:
        return len(self.starts)

    def prompt(self, index: int) -> I32:
        """Not a copy."""
        start = self.starts[index]
        return self.tokens[start : start + self.prompt_lens[index]]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that an engine is asked."""
        found = hashlib.sha256(f"{self.temperature} {self.ignore_eos}".encode())
        for array in (self.tokens, self.starts, self.prompt_lens, self.max_tokens, self.seeds):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    @property
    def mean_prompt_tokens(self) -> float:
        return float(self.prompt_lens.mean())

    def first(self, count: int) -> "SampleSet":
        """The first `count` of them."""
        return replace(
            self,
            starts=self.starts[:count],
            prompt_lens=self.prompt_lens[:count],
            max_tokens=self.max_tokens[:count],
            seeds=self.seeds[:count],
            answer_lens=None if self.answer_lens is None else self.answer_lens[:count],
            references=self.references[:count],
            subsets=self.subsets[:count],
        )


def joined(prompts: Sequence[Sequence[int] | I32]) -> tuple[I32, I64, I32]:
    """Tokens, starts and lengths of prompts that come one by one."""
    lens = np.array([len(prompt) for prompt in prompts], np.int32)
    starts = np.cumsum(lens, dtype=np.int64) - lens
    tokens = (
        np.concatenate([np.asarray(each, np.int32) for each in prompts]) if len(lens) else np.zeros(0, np.int32)
    )
    return tokens, starts, lens
