"""What clients send: the requests of the OpenAI API, as OpenAI writes them, with the extensions of other servers.

Fields that are not listed are ignored, as OpenAI-compatible servers do. A field of the wrong type, out of its
range, or one that would change the answer in a way nfold cannot do, is refused with an error that names it.

Extensions: `top_k`, `ignore_eos`, `stop_token_ids`, and `prompt` as token ids.
"""

import random
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from ...models.engine.protocol import NO_LOGPROBS, SamplingParams
from ...models.errors import RequestError

MAX_TOP_LOGPROBS = 20
MAX_CHOICES = 128
MAX_STOP_STRINGS = 16

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Count = Annotated[int, Meta(ge=1, lt=2**31)]
StopString = Annotated[str, Meta(min_length=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class StreamOptions(Struct, frozen=True):
    """`include_usage` asks for a last chunk with the token counts."""

    include_usage: bool | None = None


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """A part of a message; nfold reads text only."""

    text: str


class ChatMessage(Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """As chat templates want it."""
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content or ())
        named = {"name": self.name} if self.name else {}
        return {"role": self.role, "content": content, **named}


class GenerationRequest(Struct, frozen=True, kw_only=True):
    """What chat and text completions share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """Most tokens of an answer; None leaves it to the context."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int:
        """`NO_LOGPROBS`, or how many alternatives beside the chosen token."""
        return NO_LOGPROBS

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Refuse what would be answered as if it had not been asked.

        Raises:
            RequestError: names the parameter.
        """
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise RequestError(f"{name} is not supported; leave it out", name)
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options goes with stream: true only", "stream_options")

    def sampling(self, max_tokens: int) -> list[SamplingParams]:
        """One per choice: they differ in their seed only."""
        seed = random.getrandbits(63) if self.seed is None else self.seed
        return [
            SamplingParams(
                max_tokens=max_tokens,
                temperature=1.0 if self.temperature is None else self.temperature,
                top_k=max(self.top_k or 0, 0),
                top_p=1.0 if self.top_p is None else self.top_p,
                seed=(seed + choice) % 2**64,
                ignore_eos=bool(self.ignore_eos),
                stop_token_ids=tuple(self.stop_token_ids or ()),
                num_logprobs=self.num_logprobs,
            )
            for choice in range(self.n or 1)
        ]


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int:
        return self.top_logprobs or 0 if self.logprobs else NO_LOGPROBS

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs goes with logprobs: true only", "top_logprobs")
        if self.tools:
            raise RequestError("tools are not supported; leave them out", "tools")
        if self.response_format and self.response_format.get("type") != "text":
            raise RequestError("response_format: only {'type': 'text'} is supported", "response_format")


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | TokenId | list[TokenId]]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    @property
    def num_logprobs(self) -> int:
        return NO_LOGPROBS if self.logprobs is None else self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several, each text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        return [ids] if ids else [part for part in self.prompt if not isinstance(part, int)]

    def check(self) -> None:
        super().check()
        if not all(self.prompts) or not self.prompts:
            raise RequestError("prompt is empty", "prompt")
        if not isinstance(self.prompt, str) and len({type(part) for part in self.prompt}) > 1:
            raise RequestError("prompt: texts, token ids and lists of token ids do not mix", "prompt")
        for name in ("echo", "suffix"):
            if getattr(self, name):
                raise RequestError(f"{name} is not supported; leave it out", name)
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise RequestError("best_of is not supported; use n", "best_of")


AnyRequest = TypeVar("AnyRequest", bound=GenerationRequest)


def parse_request(body: bytes | Mapping[str, Any], kind: type[AnyRequest]) -> AnyRequest:
    """The request in a JSON body or a dict, checked.

    Raises:
        RequestError: malformed JSON, or a field is wrong: `param` names it.
    """
    try:
        request = msgspec.json.decode(body, type=kind) if isinstance(body, bytes) else msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    request.check()
    return request


def _wrong_field(message: str) -> RequestError:
    """msgspec writes: Expected `int`, got `str` - at `$.max_tokens`."""
    what, _, path = message.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    missing = re.search(r"missing required field `(\w+)`", what)
    if missing:
        path = f"{path}.{missing[1]}".lstrip(".")
        what = "missing"
    field = re.match(r"\w+", path)
    return RequestError(f"{path}: {what}" if path else f"the body: {what}", field[0] if field else None)
