"""Sets that nfold makes: by length distributions (named synthetic), sums of the embedded model, chat traces."""

import json
from pathlib import Path

import numpy as np

from ...models.engine.simulated.answers import seeds_with_ends
from ...models.engine.simulated.lengths import WORKLOADS, LengthDistribution, Lengths
from ...models.errors import ConfigError
from ...models.sums import is_right, questions
from ...models.tokenizer import Tokenizer
from .samples import SampleSet, joined

# The longest reply of the sums task has 57 characters.
_SUMS_MAX_TOKENS = 64
_POOL_TOKENS = 1 << 22
_FIRST_ID = 10
_NOISE_VALUES = 1 << 28


def synthetic_set(
    data_set: str, num: int, vocab_size: int, max_model_len: int, *, simulated: bool, seed: int = 0
) -> SampleSet:
    """Random tokens with the prompt and answer lengths of a data set of `lengths.WORKLOADS`.

    Real engines are told to give exactly so many tokens. Simulated ones learn it from the seed, which a router
    cannot read, and the limit is the data set's.
    """
    return _by_lengths(
        f"synthetic-{data_set}", WORKLOADS[data_set], num, vocab_size, max_model_len, simulated, seed
    )


def random_set(
    prompt_tokens: int, output_tokens: int, num: int, vocab_size: int, max_model_len: int, *, simulated: bool
) -> SampleSet:
    """Random tokens, log-normal lengths around these medians."""
    if prompt_tokens + output_tokens > max_model_len:
        expected = f"prompt and output medians must fit into the model's {max_model_len} tokens"
        raise ConfigError("workload", f"random-{prompt_tokens}-{output_tokens}", expected)
    prompt, answer = (
        LengthDistribution(median=median, sigma=0.5, low=2, high=max_model_len - 2, source="asked for")
        for median in (prompt_tokens, output_tokens)
    )
    name = f"synthetic-random-{prompt_tokens}-{output_tokens}"
    return _by_lengths(name, Lengths(prompt, answer), num, vocab_size, max_model_len, simulated, 0)


def _by_lengths(
    name: str, lengths: Lengths, num: int, vocab_size: int, max_model_len: int, simulated: bool, seed: int
) -> SampleSet:
    if num < 1:
        raise ConfigError("samples", num, f"{name} needs at least one sample")
    random = np.random.default_rng(seed)
    answer_lens = np.clip(lengths.answer.sample(num, random), 2, max_model_len - 1)
    prompt_lens = np.minimum(lengths.prompt.sample(num, random), max_model_len - answer_lens).clip(1)
    limits = np.minimum(lengths.answer.high, max_model_len - prompt_lens).astype(np.int32)
    noise = random.integers(0, _NOISE_VALUES, num, dtype=np.uint64)
    return SampleSet(
        name=name,
        source=f"synthetic: random tokens, {num} samples with the lengths of {name.removeprefix('synthetic-')}",
        synthetic=True,
        tokens=random.integers(min(_FIRST_ID, vocab_size - 1), vocab_size, _POOL_TOKENS, dtype=np.int32),
        starts=random.integers(0, _POOL_TOKENS - int(prompt_lens.max()), num),
        prompt_lens=prompt_lens,
        max_tokens=limits if simulated else answer_lens,
        seeds=seeds_with_ends(noise, prompt_lens, answer_lens) if simulated else noise,
        ignore_eos=not simulated,
        answer_lens=answer_lens,
    )


def sums_set(directory: Path, num: int, *, seed: int = 0) -> SampleSet:
    """Held-out questions of the embedded model's task, greedy; the references are the right answers.

    Raises:
        CheckpointError: `directory` has no readable tokenizer.
    """
    if num < 1:
        raise ConfigError("samples", num, "sums needs at least one sample")
    tokenizer = Tokenizer.load(directory)
    asked = list(questions(num, seed=seed, held_out=True))
    tokens, starts, lens = joined([tokenizer.encode_chat(question.messages) for question in asked])
    return SampleSet(
        name="sums",
        source=f"{num} held-out questions, seed {seed}",
        synthetic=False,
        tokens=tokens,
        starts=starts,
        prompt_lens=lens,
        max_tokens=np.full(num, _SUMS_MAX_TOKENS, np.int32),
        seeds=np.zeros(num, np.uint64),
        references=[str(question.answer) for question in asked],
    )


def is_right_sum(reply: str, reference: str) -> bool:
    """Whether the reply ends by stating the reference."""
    return is_right(reply, int(reference))


def read_trace(path: Path, directory: Path, max_model_len: int) -> SampleSet:
    """A chat trace: one JSON object per line, `{"messages": [...], "max_tokens": 128}`; greedy.

    Raises:
        ConfigError: names the line and what is wrong with it.
    """
    tokenizer = Tokenizer.load(directory)
    prompts: list[list[int]] = []
    limits: list[int] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("trace", str(path), f"a readable text file ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            asked = json.loads(line)
            messages, limit = asked["messages"], asked.get("max_tokens", 256)
        except (ValueError, KeyError, TypeError, AttributeError):
            expected = 'a JSON object such as {"messages": [{"role": "user", "content": "..."}], "max_tokens": 128}'
            raise ConfigError(where, line[:60], expected) from None
        if not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"{where}: max_tokens", limit, "a number of tokens from 1")
        prompt = tokenizer.encode_chat(messages)
        if len(prompt) + limit > max_model_len:
            fits = f"prompt and answer must fit into the model's {max_model_len} tokens"
            raise ConfigError(where, f"{len(prompt)} + {limit} tokens", fits)
        prompts.append(prompt)
        limits.append(limit)
    if not prompts:
        raise ConfigError("trace", str(path), "it has no requests; at least one line is needed")
    tokens, starts, lens = joined(prompts)
    return SampleSet(
        name=f"trace-{path.stem}",
        source=f"{path.name}, {len(prompts)} chats",
        synthetic=False,
        tokens=tokens,
        starts=starts,
        prompt_lens=lens,
        max_tokens=np.array(limits, np.int32),
        seeds=np.arange(len(prompts), dtype=np.uint64),
    )
