"""One API request in flight: its prompts and choices go to the router, their tokens come back as text."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from ...models.engine.protocol import FinishReason
from ...models.errors import EngineError
from ...models.text_stream import TextStream
from ..router import Router, Sink, TokenChunk
from ..served_model import ServedModel
from .schema import GenerationRequest

# Tokens turned into text without a look at other work: a fraction of a millisecond.
TOKENS_PER_TURN = 32


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token, how likely it was, and its most likely rivals (text, logprob)."""

    text: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass(slots=True)
class Delta:
    """News of one choice. `finish` is OpenAI's word, in its last delta only."""

    index: int
    text: str
    finish: str | None
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int

    def as_dict(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class _Choice:
    """One answer: tokens in, deltas out."""

    def __init__(self, index: int, model: ServedModel, text: TextStream) -> None:
        self._index = index
        self._model = model
        self._text = text
        self.num_tokens = 0
        self.finished = False

    def take(self, chunk: TokenChunk, start: int, end: int) -> Delta:
        """The delta of the chunk's tokens from `start` to `end`.

        Raises:
            EngineError: the request failed.
        """
        is_last = end == len(chunk.token_ids)
        finish = chunk.finish if is_last else FinishReason.NONE
        if finish in (FinishReason.ERROR, FinishReason.ABORT):
            raise EngineError(chunk.error or "the request was aborted")
        self.num_tokens += end - start
        if finish == FinishReason.STOP:
            end = max(start, end - 1)  # the id that ends an answer is no part of its text
        text = self._text.push(chunk.token_ids[start:end])
        word = None
        if self._text.stopped:
            word = "stop"
        elif finish != FinishReason.NONE:
            text += self._text.flush()
            word = "stop" if self._text.stopped or finish == FinishReason.STOP else "length"
        self.finished = word is not None
        return Delta(self._index, text, word, self._logprobs(chunk, start, end))

    def _logprobs(self, chunk: TokenChunk, start: int, end: int) -> list[TokenLogprob]:
        if chunk.logprobs is None:
            return []
        top_ids = chunk.top_ids or [[]] * len(chunk.token_ids)
        top_logprobs = chunk.top_logprobs or [[]] * len(chunk.token_ids)
        text_of = self._model.token_text
        return [
            TokenLogprob(
                text_of(chunk.token_ids[i]),
                chunk.logprobs[i],
                [(text_of(id), logprob) for id, logprob in zip(top_ids[i], top_logprobs[i], strict=True)],
            )
            for i in range(start, end)
        ]


class Generation:
    """All answers to one request: choice `prompt * n + i` is the i-th of that prompt.

    `deltas` ends when all are finished or after `cancel`; always `cancel` at the end, which then does nothing.

    Args:
        router: driven by the running event loop.
        prompts: token ids.
        param: what the request calls its prompt.
        continues_text: the answer goes on in the prompt's text (completions), so that a space between is kept.

    Raises:
        RequestError, OverloadedError, UnavailableError: nothing was submitted.
    """

    def __init__(
        self,
        router: Router,
        model: ServedModel,
        request: GenerationRequest,
        prompts: Sequence[Sequence[int]],
        param: str,
        continues_text: bool,
    ) -> None:
        limits = [model.room_for(prompt, request.wanted_tokens, param) for prompt in prompts]
        sampling = [params for limit in limits for params in request.sampling(limit)]
        each = [prompt for prompt in prompts for _ in range(request.n or 1)]
        stop_strings = request.stop_strings
        self._choices = [
            _Choice(index, model, TextStream(model.tokenizer, stop_strings, prompt if continues_text else ()))
            for index, prompt in enumerate(each)
        ]
        self._num_prompt_tokens = sum(len(prompt) for prompt in prompts)
        self._news: list[tuple[int, TokenChunk]] = []
        self._wake = asyncio.Event()
        self._cancelled = False
        self._router = router
        sinks = [self._sink(index) for index in range(len(each))]
        # A stop string can end an answer early only if its tokens come as they are made.
        stream = bool(request.stream or stop_strings)
        self._request_ids = router.submit_many(model.name, each, sampling, sinks, stream)
        router.flush()  # not after all else of this turn of the loop; a busy router waits for company even so

    @property
    def usage(self) -> Usage:
        """So far."""
        return Usage(self._num_prompt_tokens, sum(choice.num_tokens for choice in self._choices))

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Abort what is still running; its KV blocks are freed."""
        for choice, request_id in zip(self._choices, self._request_ids, strict=True):
            if not choice.finished:
                self._router.abort(request_id)
        self._cancelled = True
        self._wake.set()

    async def let_leave(self) -> None:
        """What was written in this turn of the loop leaves at its end; then whoever reads it may go first."""
        await asyncio.sleep(0)
        self._router.give_way()

    async def deltas(self) -> AsyncGenerator[list[Delta]]:
        """News as they come: all that has come since the last look.

        Raises:
            EngineError: an answer failed.
        """
        while not all(choice.finished for choice in self._choices):
            await self._wake.wait()
            self._wake.clear()
            if self._cancelled:
                return
            news, self._news = self._news, []
            deltas = [delta for index, chunk in news for delta in await self._take(index, chunk)]
            if deltas:
                yield deltas

    async def _take(self, index: int, chunk: TokenChunk) -> list[Delta]:
        choice, num_tokens = self._choices[index], len(chunk.token_ids)
        deltas: list[Delta] = []
        for start in range(0, max(num_tokens, 1), TOKENS_PER_TURN):
            if choice.finished:
                break
            if start:
                await asyncio.sleep(0)
            delta = choice.take(chunk, start, min(start + TOKENS_PER_TURN, num_tokens))
            if delta.text or delta.finish or delta.logprobs:
                deltas.append(delta)
        if choice.finished and chunk.finish == FinishReason.NONE:
            self._router.abort(self._request_ids[index])
        return deltas

    def _sink(self, index: int) -> Sink:
        def take(chunk: TokenChunk) -> None:
            self._news.append((index, chunk))
            self._wake.set()

        return take
