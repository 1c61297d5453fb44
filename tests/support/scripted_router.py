"""A stand-in for Router that answers from a script, for tests of what stands above it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nfold.deployments.router import Sink, TokenChunk
from nfold.models.engine.protocol import FinishReason, SamplingParams
from nfold.models.errors import OverloadedError

Script = Callable[[Sequence[int], SamplingParams], list[TokenChunk]]


def chunks_of(
    ids: Sequence[int], finish: FinishReason = FinishReason.LENGTH, size: int = 1, error: str = ""
) -> list[TokenChunk]:
    """The tokens in chunks of `size`; the last one ends the answer."""
    starts = range(0, max(len(ids), 1), size)
    return [
        TokenChunk(list(ids[i : i + size]), finish if i == starts[-1] else FinishReason.NONE, 1, error=error)
        for i in starts
    ]


@dataclass
class ScriptedRouter:
    """Gives each request the chunks of `script`, one per turn of the event loop."""

    script: Script
    raises: Exception | None = None
    num_slots: int | None = None
    num_finished: int = 0
    submitted: list[tuple[str, list[int], SamplingParams, bool]] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)

    def submit_many(
        self,
        model: str,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[SamplingParams],
        sinks: Sequence[Sink],
        stream: bool = False,
    ) -> list[int]:
        if self.raises is not None:
            raise self.raises
        ids: list[int] = []
        for prompt, params, sink in zip(prompts, sampling, sinks, strict=True):
            ids.append(len(self.submitted))
            self.submitted.append((model, list(prompt), params, stream))
            self._deliver(ids[-1], self.script(prompt, params), sink)
        return ids

    def submit(
        self, model: str, prompt: Sequence[int], sampling: SamplingParams, sink: Sink, stream: bool = True
    ) -> int:
        if self.num_slots is not None and len(self.submitted) - self.num_finished >= self.num_slots:
            raise OverloadedError("the queue is full", 1.0)
        return self.submit_many(model, [prompt], [sampling], [sink], stream)[0]

    def give_way(self) -> None: ...

    def flush(self) -> None:
        """Nothing is ever held back."""

    def abort(self, request_id: int) -> None:
        self.aborted.append(request_id)

    def _deliver(self, request_id: int, chunks: list[TokenChunk], sink: Sink) -> None:
        def next_chunk() -> None:
            if chunks and request_id not in self.aborted:
                sink(chunks.pop(0))
                self.num_finished += not chunks
                asyncio.get_running_loop().call_soon(next_chunk)

        asyncio.get_running_loop().call_soon(next_chunk)
