"""What a load asks: prompts, how they are sampled and, where the task allows it, whether a reply is right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..models.config import ModelConfig
from ..models.engine.protocol import I32, SamplingParams
from ..models.errors import ConfigError
from ..models.sums import is_right, questions
from ..models.tokenizer import Tokenizer

# The longest reply of the task has 57 characters.
_SUMS_MAX_TOKENS = 64
# Preparing so many takes about two seconds; a node of two cores answers some thousand in ten. Random prompts, for
# any model and so for larger nodes, take one second.
NUM_REQUESTS, NUM_RANDOM = 12_000, 100_000


@dataclass(frozen=True)
class Workload:
    """Requests to draw from, in turn, beginning again after the last.

    There should be more than a measurement sends: prompts that come again are answered from the prefix cache.

    Attributes:
        name: what baselines are kept under.
        check: whether the reply (token ids) to prompt `i` is right; None where that cannot be said.
    """

    name: str
    prompts: Sequence[I32]
    sampling: Sequence[SamplingParams]
    check: Callable[[int, Sequence[int]], bool] | None = None

    def __post_init__(self) -> None:
        assert len(self.prompts) == len(self.sampling) > 0

    def __len__(self) -> int:
        return len(self.prompts)


def sums_workload(directory: Path, num: int = NUM_REQUESTS, *, seed: int = 0) -> Workload:
    """`num` held-out questions of the embedded model's task, greedy; each reply can be checked.

    Raises:
        CheckpointError: `directory` has no readable tokenizer.
    """
    tokenizer = Tokenizer.load(directory)
    asked = list(questions(num, seed=seed, held_out=True))

    def check(index: int, token_ids: Sequence[int]) -> bool:
        return is_right(tokenizer.decode(token_ids), asked[index].answer)

    return Workload(
        name="sums",
        prompts=[np.array(tokenizer.encode_chat(question.messages), np.int32) for question in asked],
        sampling=[SamplingParams(max_tokens=_SUMS_MAX_TOKENS)] * num,
        check=check,
    )


def random_workload(
    vocab_size: int,
    num: int = NUM_RANDOM,
    *,
    prompt_tokens: int = 128,
    output_tokens: int = 128,
    sigma: float = 0.5,
    max_model_len: int,
    seed: int = 0,
) -> Workload:
    """Random token ids of random lengths; end-of-sequence is ignored, so any model does.

    Args:
        prompt_tokens: median of the log-normal prompt lengths.
        output_tokens: median of the log-normal output lengths.
        sigma: standard deviation of the lengths' logarithm.
        max_model_len: prompt + output of each request fit into it.

    Raises:
        ConfigError: the medians do not fit into `max_model_len`.
    """
    if prompt_tokens + output_tokens > max_model_len:
        expected = f"prompt and output medians must fit into the model's {max_model_len} tokens"
        raise ConfigError("prompt_tokens + output_tokens", prompt_tokens + output_tokens, expected)
    rng = np.random.default_rng(seed)
    outputs = np.clip(rng.lognormal(np.log(output_tokens), sigma, num), 1, max_model_len - 1).astype(int)
    prompts = np.clip(rng.lognormal(np.log(prompt_tokens), sigma, num), 1, max_model_len - outputs).astype(int)
    return Workload(
        name=f"random-{prompt_tokens}-{output_tokens}",
        prompts=[rng.integers(0, vocab_size, length).astype(np.int32) for length in prompts],
        sampling=[SamplingParams(max_tokens=int(length), ignore_eos=True) for length in outputs],
    )


def make_workload(name: str, directory: Path, *, max_model_len: int, seed: int = 0) -> Workload:
    """By the name that the command line knows: `sums`, `random`, or `random-PROMPT-OUTPUT` with median lengths.

    Raises:
        ConfigError: no such workload.
        CheckpointError: `directory` cannot be read.
    """
    if name == "sums":
        return sums_workload(directory, seed=seed)
    kind, *lengths = name.split("-")
    if kind != "random" or len(lengths) not in (0, 2) or not all(length.isdecimal() for length in lengths):
        raise ConfigError("workload", name, "known are sums, random and random-PROMPT-OUTPUT (median tokens)")
    prompt_tokens, output_tokens = map(int, lengths) if lengths else (128, 128)
    return random_workload(
        ModelConfig.from_directory(directory).vocab_size,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        max_model_len=max_model_len,
        seed=seed,
    )
