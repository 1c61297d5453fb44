"""How answers are written: what chat and text completions share. Objects are dicts, ready for JSON or a handle."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .generation import Delta, Generation, TokenLogprob, Usage

JsonObject = dict[str, Any]


class Format(Protocol):
    """Writes the answers of one request."""

    def chunk(self, delta: Delta) -> list[JsonObject]:
        """The chunks of a stream that tell one delta."""
        ...

    def usage_chunk(self, usage: Usage) -> JsonObject:
        """The last chunk, when the client asked for usage."""
        ...

    def response(self, answers: "Sequence[Answer]", usage: Usage) -> JsonObject:
        """The whole response of a request that does not stream."""
        ...


@dataclass(slots=True)
class Answer:
    """One finished choice."""

    text: str = ""
    finish: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])


class ResponseHead:
    """The fields that open every object of one response."""

    def __init__(self, prefix: str, kind: str, model: str) -> None:
        self._fields: JsonObject = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def with_choices(self, choices: list[JsonObject], usage: Usage | None = None) -> JsonObject:
        whole = {**self._fields, "choices": choices}
        return whole if usage is None else {**whole, "usage": usage.as_dict()}


async def collect(generation: Generation, num_choices: int) -> list[Answer]:
    """Wait for all answers. Those of a cancelled generation are unfinished."""
    answers = [Answer() for _ in range(num_choices)]
    async for deltas in generation.deltas():
        for delta in deltas:
            answer = answers[delta.index]
            answer.text += delta.text
            answer.finish = delta.finish
            answer.logprobs += delta.logprobs
    return answers
