"""Chat completions as OpenAI writes them."""

from collections.abc import Sequence

from .formats import Answer, JsonObject, ResponseHead
from .generation import Delta, TokenLogprob, Usage
from .schema import ChatRequest


class ChatFormat:
    """Implements `Format`. The first chunk of each choice tells the role, together with its first text."""

    def __init__(self, request: ChatRequest) -> None:
        kind = "chat.completion.chunk" if request.stream else "chat.completion"
        self._head = ResponseHead("chatcmpl", kind, request.model)
        self._with_logprobs = bool(request.logprobs)
        self._begun: set[int] = set()

    def chunk(self, delta: Delta) -> list[JsonObject]:
        chunks: list[JsonObject] = []
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            chunks.append(self._chunk(delta.index, {"role": "assistant", "content": ""}, None, None))
        logprobs = _logprobs(delta.logprobs) if self._with_logprobs else None
        chunks.append(self._chunk(delta.index, {"content": delta.text}, logprobs, delta.finish))
        return chunks

    def usage_chunk(self, usage: Usage) -> JsonObject:
        return self._head.with_choices([], usage)

    def response(self, answers: Sequence[Answer], usage: Usage) -> JsonObject:
        choices: list[JsonObject] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": _logprobs(answer.logprobs) if self._with_logprobs else None,
                "finish_reason": answer.finish,
            }
            for index, answer in enumerate(answers)
        ]
        return self._head.with_choices(choices, usage)

    def _chunk(self, index: int, delta: JsonObject, logprobs: JsonObject | None, finish: str | None) -> JsonObject:
        return self._head.with_choices(
            [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]
        )


def _logprobs(tokens: Sequence[TokenLogprob]) -> JsonObject:
    return {
        "content": [
            {**_token(token.text, token.logprob), "top_logprobs": [_token(*rival) for rival in token.top]}
            for token in tokens
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> JsonObject:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
