"""The Engine protocol: what a replica needs from whatever computes tokens. No torch here.

Requests and outputs are structures of arrays, because they cross process borders once per step
and a simulated engine must not pay Python time per token.

Legend: N requests, P prompt tokens of all of them, R output rows of a step (one per new token), K top logprobs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

NO_LOGPROBS = -1


class FinishReason(IntEnum):
    """Why a request ended; `NONE` while it goes on."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is sampled.

    Attributes:
        max_tokens: most tokens to generate, at least 1.
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        seed: the noise of a token is a function of (seed, position) alone.
        ignore_eos: go on past the model's end-of-sequence ids.
        stop_token_ids: more ids that end the answer (the id itself is part of the output).
        num_logprobs: `NO_LOGPROBS`, or how many top alternatives to report beside the chosen token (0 to 20).
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    num_logprobs: int = NO_LOGPROBS


@dataclass(frozen=True, slots=True)
class SubmitBatch:
    """N requests for one engine.

    A request that continues elsewhere comes with prompt + emitted tokens as its prompt and the rest of its
    max_tokens; as noise depends on the absolute position, the stream goes on with the same tokens.
    """

    request_ids: U64  # [N] unique within the engine while in flight
    prompt_lens: I32  # [N]
    prompt_ids: I32  # [P] concatenated
    max_tokens: I32  # [N]
    temperature: F32  # [N]
    top_k: I32  # [N]
    top_p: F32  # [N]
    seed: U64  # [N]
    ignore_eos: U8  # [N]
    num_logprobs: NDArray[np.int8]  # [N]
    stop_lens: I32  # [N]
    stop_ids: I32  # [sum of stop_lens]

    def __len__(self) -> int:
        return len(self.request_ids)

    def with_ids(self, request_ids: U64) -> "SubmitBatch":
        """The same requests under other ids."""
        return SubmitBatch(
            request_ids,
            self.prompt_lens,
            self.prompt_ids,
            self.max_tokens,
            self.temperature,
            self.top_k,
            self.top_p,
            self.seed,
            self.ignore_eos,
            self.num_logprobs,
            self.stop_lens,
            self.stop_ids,
        )

    @classmethod
    def build(
        cls,
        request_ids: Sequence[int],
        prompts: Sequence[Sequence[int] | I32],
        sampling: Sequence[SamplingParams],
    ) -> "SubmitBatch":
        """From one prompt and one SamplingParams per request."""
        prompt_lens = np.array([len(prompt) for prompt in prompts], np.int32)
        ids = [np.asarray(prompt, np.int32) for prompt in prompts]
        stops = [stop for params in sampling for stop in params.stop_token_ids]
        return cls(
            request_ids=np.array(request_ids, np.uint64),
            prompt_lens=prompt_lens,
            prompt_ids=np.concatenate(ids) if ids else np.zeros(0, np.int32),
            max_tokens=np.array([p.max_tokens for p in sampling], np.int32),
            temperature=np.array([p.temperature for p in sampling], np.float32),
            top_k=np.array([p.top_k for p in sampling], np.int32),
            top_p=np.array([p.top_p for p in sampling], np.float32),
            seed=np.array([p.seed for p in sampling], np.uint64),
            ignore_eos=np.array([p.ignore_eos for p in sampling], np.uint8),
            num_logprobs=np.array([p.num_logprobs for p in sampling], np.int8),
            stop_lens=np.array([len(p.stop_token_ids) for p in sampling], np.int32),
            stop_ids=np.array(stops, np.int32),
        )


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What one step brought: one row per new token, and one row without a token (`token_ids` -1) for a request
    that ended without one (abort, error).

    `logprobs` is NaN where not asked for; `top_ids`/`top_logprobs` have K columns, K the most that any row of this
    step asked for (0 mostly), padded with -1 / NaN.
    """

    request_ids: U64  # [R]
    token_ids: I32  # [R]
    finish: U8  # [R] FinishReason
    logprobs: F32  # [R]
    top_ids: I32  # [R, K]
    top_logprobs: F32  # [R, K]
    step: "StepRecord"

    def __len__(self) -> int:
        return len(self.request_ids)

    def with_ids(self, request_ids: U64) -> "StepOutputs":
        """The same rows under other ids."""
        return StepOutputs(
            request_ids,
            self.token_ids,
            self.finish,
            self.logprobs,
            self.top_ids,
            self.top_logprobs,
            self.step,
        )


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The account of one step; the ledger integrates these.

    Attributes:
        step_s: wall time of the step, seconds.
        num_prefill_tokens: prompt tokens computed in this step.
        num_decode_tokens: tokens computed in this step for requests past their prompt.
        num_recomputed_tokens: of both, those that had been computed before (preemption).
        num_kv_tokens: context that the step's requests hold when it is done.
        num_running: requests in it.
        num_without_room: requests that were there when it began and that no slot or no KV cache was free for.
        num_deferred: those there was room for, but that its token budget, or the pace at which prompts start, left
            for a later step. What comes after `num_recomputed_tokens` stays at the replica.
    """

    step_s: float
    num_prefill_tokens: int
    num_decode_tokens: int
    num_recomputed_tokens: int
    num_kv_tokens: int = 0
    num_running: int = 0
    num_without_room: int = 0
    num_deferred: int = 0

    @property
    def num_left_waiting(self) -> int:
        """Requests that were there when it began and did not start, for either reason."""
        return self.num_without_room + self.num_deferred


@dataclass(frozen=True, slots=True)
class EngineStats:
    """State and totals since start. Totals only grow."""

    num_running: int
    num_waiting: int
    num_kv_blocks: int
    num_kv_blocks_used: int
    total_steps: int
    total_prompt_tokens: int
    total_output_tokens: int
    total_cached_prompt_tokens: int
    total_recomputed_tokens: int
    total_preemptions: int
    total_step_s: float


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is, fixed after start.

    Attributes:
        engine: `native`, `transformers`, `vllm` or `simulated`.
        max_model_len: most tokens of prompt + answer.
        max_num_seqs: most requests in one step.
        settings: the settings as effective after start, for provenance.
    """

    engine: str
    max_model_len: int
    max_num_seqs: int
    settings: dict[str, str | int | float | bool]


@runtime_checkable
class Engine(Protocol):
    """One replica's engine, driven by one thread. Nothing here blocks longer than one step."""

    @property
    def info(self) -> EngineInfo: ...

    def submit(self, batch: SubmitBatch) -> None:
        """Queue requests. One that can never fit gives a row with FinishReason.ERROR at the next step."""
        ...

    def abort(self, request_ids: U64) -> None:
        """Forget requests and free their KV blocks. Unknown ids are ignored; aborted ones give no more rows."""
        ...

    def has_work(self) -> bool: ...

    def step(self) -> StepOutputs:
        """Compute one step. Raises EngineError when the engine cannot go on."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None: ...
