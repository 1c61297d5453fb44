"""A request as the engine keeps it, and how a SubmitBatch becomes requests."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

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
    request_ids: list[int] = batch.request_ids.tolist()
    prompt_ends: list[int] = np.cumsum(batch.prompt_lens, dtype=np.int64).tolist()
    is_outside = (batch.prompt_ids < 0) | (batch.prompt_ids >= vocab_size)
    any_outside = bool(is_outside.any())
    start = 0
    for request_id, end, sampling in zip(request_ids, prompt_ends, _read_sampling(batch), strict=True):
        token_ids = batch.prompt_ids[start:end]
        fault = _find_fault(token_ids, sampling, max_model_len)
        if any_outside and is_outside[start:end].any():
            fault = f"a prompt token id lies outside 0 to {vocab_size - 1}"
        start = end
        if fault is not None:
            _log.warning("request %d cannot be served: %s", request_id, fault)
            rejected.append(request_id)
            continue
        max_num_tokens = min(len(token_ids) + sampling.max_tokens, max_model_len)
        accepted.append(Request(request_id, token_ids, len(token_ids), max_num_tokens, sampling))
    return accepted, rejected


def _read_sampling(batch: SubmitBatch) -> Iterator[SamplingParams]:
    """One for each request. Whole columns become Python values at once: element by element takes thrice as long."""
    stop_ids: list[int] = batch.stop_ids.tolist()
    stop_start = 0
    for max_tokens, temperature, top_k, top_p, seed, ignore_eos, num_logprobs, num_stops in zip(
        batch.max_tokens.tolist(),
        batch.temperature.tolist(),
        batch.top_k.tolist(),
        batch.top_p.tolist(),
        batch.seed.tolist(),
        batch.ignore_eos.tolist(),
        batch.num_logprobs.tolist(),
        batch.stop_lens.tolist(),
        strict=True,
    ):
        stops = tuple(stop_ids[stop_start : stop_start + num_stops])
        stop_start += num_stops
        yield SamplingParams(max_tokens, temperature, top_k, top_p, seed, bool(ignore_eos), stops, num_logprobs)


def _find_fault(token_ids: I32, sampling: SamplingParams, max_model_len: int) -> str | None:
    """Why the engine can never serve this; the gateway finds these first and words them for the client."""
    if len(token_ids) == 0:
        return "the prompt is empty"
    if len(token_ids) + 1 > max_model_len:
        return f"a prompt of {len(token_ids)} tokens and one more exceed max_model_len {max_model_len}"
    if sampling.max_tokens < 1:
        return f"max_tokens is {sampling.max_tokens}"
    if not (sampling.temperature >= 0 and sampling.top_k >= 0 and 0 < sampling.top_p <= 1):
        return f"sampling out of range: {sampling}"
    return None
