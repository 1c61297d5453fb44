"""A request as the engine keeps it, and how a SubmitBatch becomes requests."""

import logging
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .protocol import I32, SamplingParams, SubmitBatch

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Request:
    """One request from submit to its end. While it runs, its counters and tokens stand in a row of the SlotTable.

    Attributes:
        token_ids: the prompt; after a preemption the prompt and the answer so far.
        num_prompt_tokens: of `token_ids`, those that came as the prompt.
        max_num_tokens: prompt and answer end at this length.
        num_seen_tokens: tokens that were computed or found in the prefix cache at least once; to compute one of
            them again is recomputation.
        block_hashes: chained hashes of the full blocks, as far as they were needed yet.
        slot: row in the SlotTable, -1 while it waits.
    """

    request_id: int
    token_ids: I32
    num_prompt_tokens: int
    max_num_tokens: int
    sampling: SamplingParams
    num_seen_tokens: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    slot: int = -1


def read_requests(batch: SubmitBatch, *, max_model_len: int, vocab_size: int) -> tuple[list[Request], list[int]]:
    """The requests that the engine can serve, and the ids of those that it never can."""
    accepted: list[Request] = []
    rejected: list[int] = []
    prompt_ends = np.cumsum(batch.prompt_lens, dtype=np.int64)
    stop_ends = np.cumsum(batch.stop_lens, dtype=np.int64)
    for row in range(len(batch)):
        request_id = int(batch.request_ids[row])
        prompt_len = int(batch.prompt_lens[row])
        token_ids = batch.prompt_ids[prompt_ends[row] - prompt_len : prompt_ends[row]]
        stop_ids: NDArray[np.int32] = batch.stop_ids[stop_ends[row] - batch.stop_lens[row] : stop_ends[row]]
        sampling = SamplingParams(
            max_tokens=int(batch.max_tokens[row]),
            temperature=float(batch.temperature[row]),
            top_k=int(batch.top_k[row]),
            top_p=float(batch.top_p[row]),
            seed=int(batch.seed[row]),
            ignore_eos=bool(batch.ignore_eos[row]),
            stop_token_ids=tuple(stop_ids.tolist()),
            num_logprobs=int(batch.num_logprobs[row]),
        )
        fault = _find_fault(token_ids, sampling, max_model_len, vocab_size)
        if fault is not None:
            _log.warning("request %d cannot be served: %s", request_id, fault)
            rejected.append(request_id)
            continue
        max_num_tokens = min(prompt_len + sampling.max_tokens, max_model_len)
        accepted.append(Request(request_id, token_ids, prompt_len, max_num_tokens, sampling))
    return accepted, rejected


def _find_fault(token_ids: I32, sampling: SamplingParams, max_model_len: int, vocab_size: int) -> str | None:
    """Why the engine can never serve this; the gateway finds these first and words them for the client."""
    if len(token_ids) == 0:
        return "the prompt is empty"
    if len(token_ids) + 1 > max_model_len:
        return f"a prompt of {len(token_ids)} tokens and one more exceed max_model_len {max_model_len}"
    if int(token_ids.min()) < 0 or int(token_ids.max()) >= vocab_size:
        return f"a prompt token id lies outside 0 to {vocab_size - 1}"
    if sampling.max_tokens < 1:
        return f"max_tokens is {sampling.max_tokens}"
    if not (sampling.temperature >= 0 and sampling.top_k >= 0 and 0 < sampling.top_p <= 1):
        return f"sampling out of range: {sampling}"
    return None
