"""Many prompts in one call, for offline runs through a Serve handle. Answers are token ids, not text."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ...models.engine.protocol import FinishReason, SamplingParams
from ...models.errors import EngineError, OverloadedError, RequestError
from ..router import Router, Sink, TokenChunk
from ..served_model import ServedModel
from .formats import JsonObject
from .schema import CompletionRequest, parse_request

_NOT_IN_BATCHES = ("n", "stop", "logprobs", "stream", "model", "prompt")


async def generate_batch(
    router: Router,
    model: ServedModel,
    prompts: Sequence[str | Sequence[int]],
    sampling: Mapping[str, Any],
    window: int,
) -> list[JsonObject]:
    """One answer per prompt, in order: `token_ids`, `finish_reason` and `num_prompt_tokens`.

    Args:
        sampling: fields of a completion request, the same for all prompts: `max_tokens`, `temperature`, ...
        window: most requests of this call that are submitted at once; the others wait here.

    Raises:
        RequestError: a prompt or field is wrong. EngineError: an answer failed. OverloadedError, UnavailableError.
    """
    unwanted = sorted(set(sampling) & set(_NOT_IN_BATCHES))
    if unwanted:
        raise RequestError(f"sampling: {unwanted[0]} does not go with a batch", unwanted[0])
    ids = [await model.encode(prompt) for prompt in prompts]
    request = parse_request({"prompt": "batch", "model": model.name, **sampling}, CompletionRequest)
    limits = [model.room_for(prompt, request.wanted_tokens, "prompt") for prompt in ids]
    batch = _Batch(router, model.name, window)
    return await batch.run(
        [(prompt, request.sampling(limit)[0]) for prompt, limit in zip(ids, limits, strict=True)]
    )


class _Batch:
    """Keeps `window` requests going until all are answered."""

    def __init__(self, router: Router, model: str, window: int) -> None:
        self._router = router
        self._model = model
        self._window = window
        self._progress = asyncio.Event()
        self._in_flight: dict[int, int] = {}

    async def run(self, requests: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[JsonObject]:
        answers: list[JsonObject] = [
            {"token_ids": [], "finish_reason": None, "num_prompt_tokens": len(prompt)} for prompt, _ in requests
        ]
        failures: list[str] = []
        num_submitted = 0
        try:
            while num_submitted < len(requests) or self._in_flight:
                while num_submitted < len(requests) and len(self._in_flight) < self._window:
                    sink = self._sink(num_submitted, answers[num_submitted], failures)
                    if not self._submit(num_submitted, requests[num_submitted], sink):
                        break
                    num_submitted += 1
                await self._progress.wait()
                self._progress.clear()
                if failures:
                    raise EngineError(failures[0])
        finally:
            for request_id in self._in_flight.values():
                self._router.abort(request_id)
        return answers

    def _submit(self, index: int, request: tuple[Sequence[int], SamplingParams], sink: Sink) -> bool:
        """False when the queue is full; what is in flight will make room."""
        try:
            self._in_flight[index] = self._router.submit(self._model, *request, sink, stream=False)
        except OverloadedError:
            if not self._in_flight:
                raise
            return False
        return True

    def _sink(self, index: int, answer: JsonObject, failures: list[str]) -> Sink:
        def take(chunk: TokenChunk) -> None:
            answer["token_ids"] += chunk.token_ids
            if chunk.finish == FinishReason.NONE:
                return
            del self._in_flight[index]
            if chunk.finish in (FinishReason.ERROR, FinishReason.ABORT):
                failures.append(chunk.error or "the request was aborted")
            answer["finish_reason"] = "stop" if chunk.finish == FinishReason.STOP else "length"
            self._progress.set()

        return take
