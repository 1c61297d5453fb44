"""An engine without tensors for tests of whatever stands above engines.

Each token is a function of the sequence before it (and of the seed, when sampled), so prompt + emitted tokens
submitted elsewhere must go on with exactly the tokens that the first engine would have given.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nfold.models.engine.protocol import (
    NO_LOGPROBS,
    U64,
    EngineInfo,
    EngineStats,
    FinishReason,
    SamplingParams,
    StepOutputs,
    StepRecord,
    SubmitBatch,
)
from nfold.models.errors import EngineError
from numpy.typing import NDArray

VOCABULARY = 32_000
EOS = 2
_FACTOR = np.uint64(6_364_136_223_846_793_005)
_SEED_FACTOR = np.uint64(0x9E37_79B9_7F4A_7C15)


def fake_tokens(prompt: Sequence[int], num_tokens: int, sampling: SamplingParams | None = None) -> list[int]:
    """The first `num_tokens` tokens that a FakeEngine answers, end-of-sequence ignored."""
    sampling = sampling or SamplingParams(num_tokens)
    state, salt = _state_of(np.array(prompt, np.int32)), np.array([_salt_of(sampling.temperature, sampling.seed)])
    tokens: list[int] = []
    for _ in range(num_tokens):
        token = _tokens_of(state, salt)
        state = _append(state, token)
        tokens.append(int(token[0]))
    return tokens


def _salt_of(temperature: float, seed: int) -> np.uint64:
    return np.uint64(seed) if temperature > 0 else np.uint64(0)


def _state_of(prompt: NDArray[np.int32]) -> U64:
    """[1] A polynomial hash of the whole sequence, so that one more token is one more multiplication."""
    factors = np.full(len(prompt), _FACTOR)
    factors[0] = 1
    powers = np.cumprod(factors)[::-1]
    return np.sum(powers * (prompt.astype(np.uint64) + np.uint64(1)), dtype=np.uint64, keepdims=True)


def _append(states: U64, tokens: NDArray[np.int32]) -> U64:
    return states * _FACTOR + tokens.astype(np.uint64) + np.uint64(1)


def _tokens_of(states: U64, salts: U64) -> NDArray[np.int32]:
    mixed = (states ^ (salts * _SEED_FACTOR)) * _FACTOR
    return ((mixed >> np.uint64(33)) % np.uint64(VOCABULARY)).astype(np.int32)


@dataclass(slots=True)
class _Running:
    """Requests in the batch, one array item each."""

    ids: U64
    states: U64
    salts: U64
    left: NDArray[np.int32]
    ignore_eos: NDArray[np.uint8]
    num_logprobs: NDArray[np.int8]
    new_prompt_tokens: NDArray[np.int32]  # 0 once the first token came

    def arrays(self) -> list[NDArray[Any]]:
        return [getattr(self, name) for name in self.__slots__]

    def keep(self, mask: NDArray[np.bool_]) -> "_Running":
        return _Running(*(array[mask] for array in self.arrays()))

    def extend(self, others: list["_Running"]) -> "_Running":
        parts = zip(*(part.arrays() for part in [self, *others]), strict=True)
        return _Running(*(np.concatenate(arrays) for arrays in parts))


def _empty() -> _Running:
    types = (np.uint64, np.uint64, np.uint64, np.int32, np.uint8, np.int8, np.int32)
    arrays: list[Any] = [np.zeros(0, item) for item in types]
    return _Running(*arrays)


class FakeEngine:
    """See the module. One KV block per running request.

    Args:
        step_s: each step sleeps so long.
        die_at_step: that step (1 is the first) raises EngineError.

    `gate` is open; a test that clears it holds the engine inside its next step until it is set again.
    """

    def __init__(
        self,
        max_num_seqs: int = 64,
        max_model_len: int = 4096,
        step_s: float = 0.0,
        die_at_step: int | None = None,
    ) -> None:
        self.info = EngineInfo("fake", max_model_len, max_num_seqs, {"step_s": step_s})
        self.gate = threading.Event()
        self.gate.set()
        self.num_submit_calls = 0
        self.submitted_ids: list[int] = []
        self.aborted_ids: list[int] = []
        self.closed = False
        self._step_s = step_s
        self._die_at_step = die_at_step
        self._waiting: deque[_Running] = deque()
        self._failed: list[int] = []
        self._stop_ids: dict[int, set[int]] = {}
        self._running = _empty()
        self._num_steps = self._num_prompt_tokens = self._num_output_tokens = 0
        self._total_step_s = 0.0

    def submit(self, batch: SubmitBatch) -> None:
        self.num_submit_calls += 1
        self.submitted_ids += batch.request_ids.tolist()
        prompts = np.split(batch.prompt_ids, np.cumsum(batch.prompt_lens)[:-1])
        stops = np.split(batch.stop_ids, np.cumsum(batch.stop_lens)[:-1])
        for i, prompt in enumerate(prompts):
            request_id = int(batch.request_ids[i])
            if len(prompt) + int(batch.max_tokens[i]) > self.info.max_model_len:
                self._failed.append(request_id)
                continue
            if len(stops[i]):
                self._stop_ids[request_id] = set(stops[i].tolist())
            self._waiting.append(
                _Running(
                    ids=batch.request_ids[i : i + 1],
                    states=_state_of(prompt),
                    salts=np.array([_salt_of(float(batch.temperature[i]), int(batch.seed[i]))]),
                    left=batch.max_tokens[i : i + 1].copy(),
                    ignore_eos=batch.ignore_eos[i : i + 1],
                    num_logprobs=batch.num_logprobs[i : i + 1],
                    new_prompt_tokens=batch.prompt_lens[i : i + 1].copy(),
                )
            )

    def abort(self, request_ids: U64) -> None:
        self.aborted_ids += request_ids.tolist()
        gone = set(request_ids.tolist())
        self._waiting = deque(request for request in self._waiting if int(request.ids[0]) not in gone)
        self._running = self._running.keep(~np.isin(self._running.ids, request_ids))

    def has_work(self) -> bool:
        return bool(self._waiting or self._failed or len(self._running.ids))

    def step(self) -> StepOutputs:
        if not self.gate.wait(60):
            raise EngineError("the test left the gate closed")
        self._num_steps += 1
        if self._num_steps == self._die_at_step:
            raise EngineError(f"told to die at step {self._num_steps}")
        if self._step_s:
            time.sleep(self._step_s)
        self._total_step_s += self._step_s
        room = self.info.max_num_seqs - len(self._running.ids)
        if room > 0 and self._waiting:
            self._running = self._running.extend(
                [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            )
        return self._advance()

    def _advance(self) -> StepOutputs:
        running = self._running
        tokens = _tokens_of(running.states, running.salts)
        running.states = _append(running.states, tokens)
        running.left -= 1
        finish = np.where(running.left == 0, FinishReason.LENGTH, FinishReason.NONE).astype(np.uint8)
        finish[(tokens == EOS) & (running.ignore_eos == 0)] = FinishReason.STOP
        for row, request_id in enumerate(running.ids.tolist() if self._stop_ids else []):
            if int(tokens[row]) in self._stop_ids.get(request_id, ()):
                finish[row] = FinishReason.STOP
        num_prompt_tokens = int(running.new_prompt_tokens.sum())
        num_decode_tokens = int((running.new_prompt_tokens == 0).sum())
        running.new_prompt_tokens[:] = 0
        self._num_prompt_tokens += num_prompt_tokens
        self._num_output_tokens += len(tokens)
        record = StepRecord(
            self._step_s,
            num_prompt_tokens,
            num_decode_tokens,
            0,
            num_running=len(running.ids),
            num_without_room=len(self._waiting),
        )
        outputs = self._outputs(running, tokens, finish, record)
        self._running = running.keep(finish == FinishReason.NONE)
        return outputs

    def _outputs(
        self, running: _Running, tokens: NDArray[np.int32], finish: NDArray[np.uint8], step: StepRecord
    ) -> StepOutputs:
        failed, self._failed = self._failed, []
        n = len(failed)
        wanted = np.concatenate([running.num_logprobs, np.full(n, NO_LOGPROBS, np.int8)])
        token_ids = np.concatenate([tokens, np.full(n, -1, np.int32)])
        columns = np.arange(max(0, int(wanted.max(initial=0))), dtype=np.int32)
        shown = columns[None, :] < wanted[:, None]
        return StepOutputs(
            request_ids=np.concatenate([running.ids, np.array(failed, np.uint64)]),
            token_ids=token_ids,
            finish=np.concatenate([finish, np.full(n, FinishReason.ERROR, np.uint8)]),
            logprobs=np.where(wanted >= 0, -token_ids / 1000, np.nan).astype(np.float32),
            top_ids=np.where(shown, token_ids[:, None] + columns, -1).astype(np.int32),
            top_logprobs=np.where(shown, -(token_ids[:, None] + columns) / 1000, np.nan).astype(np.float32),
            step=step,
        )

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._running.ids),
            num_waiting=len(self._waiting) + len(self._failed),
            num_kv_blocks=self.info.max_num_seqs,
            num_kv_blocks_used=len(self._running.ids),
            total_steps=self._num_steps,
            total_prompt_tokens=self._num_prompt_tokens,
            total_output_tokens=self._num_output_tokens,
            total_cached_prompt_tokens=0,
            total_recomputed_tokens=0,
            total_preemptions=0,
            total_step_s=self._total_step_s,
        )

    def close(self) -> None:
        self.closed = True
