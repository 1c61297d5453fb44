"""What a request must look like before it may stand in a message with others, where it could spoil them all."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import I32, NO_LOGPROBS, U64, SamplingParams, SubmitBatch
from ..models.errors import RequestError

_MAX_I32 = (1 << 31) - 1
_MAX_U64 = (1 << 64) - 1
_MAX_LOGPROBS = 20


def checked_prompt(prompt_ids: Sequence[int] | I32) -> I32:
    """The prompt as one array, a copy. Raises RequestError unless it is a non-empty row of token ids."""
    try:
        prompt = np.array(prompt_ids, np.int32)
    except (OverflowError, TypeError, ValueError) as error:
        raise RequestError(f"prompt: token ids are integers from 0 to {_MAX_I32} ({error})", "prompt") from error
    if prompt.ndim != 1 or len(prompt) == 0 or prompt.min() < 0:
        raise RequestError(f"prompt: at least one token id, each from 0 to {_MAX_I32}", "prompt")
    return prompt


def checked_sampling(params: SamplingParams) -> None:
    """Raises RequestError that names the first value that no engine takes."""
    _within("max_tokens", params.max_tokens, 1, _MAX_I32)
    _within("temperature", params.temperature, 0.0, 1e6)
    _within("top_k", params.top_k, 0, _MAX_I32)
    _within("top_p", params.top_p, 0.0, 1.0)
    _within("seed", params.seed, 0, _MAX_U64)
    _within("num_logprobs", params.num_logprobs, NO_LOGPROBS, _MAX_LOGPROBS)
    for stop in params.stop_token_ids:
        _within("stop_token_ids", stop, 0, _MAX_I32)


def checked_bulk(
    prompt_ids: I32,
    prompt_lens: I32,
    max_tokens: I32,
    seeds: U64,
    ignore_eos: bool,
    temperature: float,
    prompt_starts: NDArray[np.int64] | None = None,
) -> SubmitBatch:
    """Many requests as one batch, with copies of the arrays. Read-only `prompt_ids` are taken as they are: those of
    a huge batch take long to copy. With `prompt_starts` see `Router.submit_bulk`.

    Raises RequestError that names what no engine takes.
    """
    lens, longest = np.array(prompt_lens, np.int32), np.array(max_tokens, np.int32)
    prompt_ids = np.asarray(prompt_ids, np.int32)
    if prompt_starts is None and prompt_ids.flags.writeable:
        prompt_ids = prompt_ids.copy()
    count = len(lens)
    if lens.shape != (count,) or longest.shape != (count,) or np.shape(seeds) != (count,):
        raise ValueError("as many prompt_lens as max_tokens and seeds")
    if prompt_starts is None:
        fits = lens.sum(dtype=np.int64) == len(prompt_ids) and prompt_ids.min(initial=0) >= 0
    elif prompt_starts.shape != (count,):
        raise ValueError("as many prompt_starts as prompt_lens")
    else:
        fits = prompt_starts.min(initial=0) >= 0 and (prompt_starts + lens).max(initial=0) <= len(prompt_ids)
    if not fits or lens.min(initial=1) < 1:
        raise RequestError(
            f"prompt: at least one token id each, from 0 to {_MAX_I32}, as many as prompt_lens say", "prompt"
        )
    if longest.min(initial=1) < 1:
        raise RequestError(f"max_tokens: got {longest.min()}; it must be from 1 to {_MAX_I32}", "max_tokens")
    _within("temperature", temperature, 0.0, 1e6)
    return SubmitBatch(
        request_ids=np.zeros(count, np.uint64),
        prompt_lens=lens,
        prompt_ids=prompt_ids,
        max_tokens=longest,
        temperature=np.full(count, temperature, np.float32),
        top_k=np.zeros(count, np.int32),
        top_p=np.ones(count, np.float32),
        seed=np.array(seeds, np.uint64),
        ignore_eos=np.full(count, ignore_eos, np.uint8),
        num_logprobs=np.full(count, NO_LOGPROBS, np.int8),
        stop_lens=np.zeros(count, np.int32),
        stop_ids=np.zeros(0, np.int32),
    )


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # not the other way round: NaN must fail
        raise RequestError(f"{name}: got {value!r}; it must be from {low} to {high}", name)
