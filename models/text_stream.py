"""Token ids to text as they come, with stop strings."""

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has at most 4 bytes, so tokens that stay undecodable for longer hold bytes that are not UTF-8.
_MOST_PENDING = 16
_NUM_CONTEXT = 6


class Decoder(Protocol):
    def decode(self, token_ids: Sequence[int]) -> str: ...


class TextStream:
    """One answer's text, in pieces that are final.

    A piece never ends within a UTF-8 character, and what could be the beginning of a stop string is held back until
    it is known. The cost of a token is constant, whatever came before.

        ids    [ context | pending ]      decoded: context; context + pending. The new text is the difference,
                                          because the text of a token may depend on the one before (spaces).
        text     already out | held       a beginning of a stop string, perhaps

    Attributes:
        stopped: a stop string has come; its text and all after it is cut, and further tokens are ignored.
    """

    def __init__(
        self, tokenizer: Decoder, stop_strings: Sequence[str] = (), prompt_ids: Sequence[int] = ()
    ) -> None:
        """`prompt_ids`: give them when the answer continues the prompt's text, so that a space between is kept."""
        self._tokenizer = tokenizer
        self._stop_strings = [stop for stop in stop_strings if stop]
        self._context = list(prompt_ids[-_NUM_CONTEXT:])
        self._pending: list[int] = []
        self._held = ""
        self.stopped = False

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens make certain; may be empty."""
        if self.stopped:
            return ""
        return self._cut("".join([self._decode_next(token_id) for token_id in token_ids]))

    def flush(self) -> str:
        """The rest, when no more tokens come."""
        if self.stopped:
            return ""
        rest = self._cut(self._text_of(len(self._pending)))
        self._pending = []
        if not self.stopped:
            rest, self._held = rest + self._held, ""
        return rest

    def _decode_next(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._text_of(len(self._pending))
        if not text.endswith(_REPLACEMENT):
            count = len(self._pending)
        elif len(self._pending) > _MOST_PENDING:
            count = 1
            text = self._text_of(1)
        else:
            return ""
        if text:
            self._context = self._pending[:count]
        else:  # special tokens have no text; what came before them still decides on spaces
            self._context += self._pending[:count]
            del self._context[:-_NUM_CONTEXT]
        del self._pending[:count]
        return text

    def _text_of(self, count: int) -> str:
        """Text of the first `count` pending tokens."""
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending[:count])[len(before) :]

    def _cut(self, new_text: str) -> str:
        """Adds new text to the held one and returns what is certain to come before any stop string."""
        text = self._held + new_text
        starts = [start for stop in self._stop_strings if (start := text.find(stop)) >= 0]
        if starts:
            self.stopped = True
            self._held = ""
            return text[: min(starts)]
        keep = max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many of the text's last characters are a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
