"""Text completions as OpenAI writes them."""

from collections.abc import Sequence

from .formats import Answer, JsonObject, ResponseHead
from .generation import Delta, TokenLogprob, Usage
from .schema import CompletionRequest


class CompletionFormat:
    """Implements `Format`."""

    def __init__(self, request: CompletionRequest) -> None:
        self._head = ResponseHead("cmpl", "text_completion", request.model)
        self._with_logprobs = request.logprobs is not None
        self._num_chars: dict[int, int] = {}

    def chunk(self, delta: Delta) -> list[JsonObject]:
        return [self._head.with_choices([self._choice(delta.index, delta)])]

    def usage_chunk(self, usage: Usage) -> JsonObject:
        return self._head.with_choices([], usage)

    def response(self, answers: Sequence[Answer], usage: Usage) -> JsonObject:
        return self._head.with_choices([self._choice(index, answer) for index, answer in enumerate(answers)], usage)

    def _choice(self, index: int, news: Delta | Answer) -> JsonObject:
        logprobs = None
        if self._with_logprobs:
            start = self._num_chars.get(index, 0)
            logprobs = _logprobs(news.logprobs, start)
            self._num_chars[index] = start + sum(len(token.text) for token in news.logprobs)
        return {"index": index, "text": news.text, "logprobs": logprobs, "finish_reason": news.finish}


def _logprobs(tokens: Sequence[TokenLogprob], start: int) -> JsonObject:
    """`text_offset` counts characters from the beginning of the answer."""
    offsets: list[int] = []
    for token in tokens:
        offsets.append(start)
        start += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{token.text: token.logprob, **dict(token.top)} for token in tokens],
        "text_offset": offsets,
    }
