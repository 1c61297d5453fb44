"""The API without HTTP: requests in, answers out. Both the HTTP routes and the Serve handle calls stand on it."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from ...models.errors import UnknownModelError
from ..router import Router
from ..served_model import ServedModel
from .chat import ChatFormat
from .completions import CompletionFormat
from .formats import Format, JsonObject, collect
from .generation import Generation
from .schema import ChatRequest, CompletionRequest, GenerationRequest, parse_request


@dataclass(frozen=True, slots=True)
class Started:
    """A request whose tokens are being made, and how its answers are to be written."""

    request: GenerationRequest
    generation: Generation
    format: Format
    num_choices: int

    async def response(self) -> JsonObject:
        """The whole response. Raises EngineError."""
        answers = await collect(self.generation, self.num_choices)
        return self.format.response(answers, self.generation.usage)

    async def chunks(self) -> AsyncGenerator[list[JsonObject]]:
        """The chunks of a stream: all that are ready, again and again. Raises EngineError."""
        async for deltas in self.generation.deltas():
            yield [chunk for delta in deltas for chunk in self.format.chunk(delta)]
        if self.request.wants_usage and not self.generation.cancelled:
            yield [self.format.usage_chunk(self.generation.usage)]


class OpenAIApi:
    """Chat and text completions of the served models.

    Args:
        router: driven by the event loop that calls this.
    """

    def __init__(self, router: Router, models: Mapping[str, ServedModel]) -> None:
        self._router = router
        self._models = models

    async def start_chat(self, body: bytes | Mapping[str, Any]) -> Started:
        """Start a chat completion. The caller cancels its generation in the end.

        Raises:
            RequestError, OverloadedError, UnavailableError
        """
        request = parse_request(body, ChatRequest)
        model = self.model(request.model)
        prompt = await model.encode_chat([message.for_template() for message in request.messages])
        generation = Generation(self._router, model, request, [prompt], "messages", continues_text=False)
        return Started(request, generation, ChatFormat(request), request.n or 1)

    async def start_completion(self, body: bytes | Mapping[str, Any]) -> Started:
        """Start a text completion. The caller cancels its generation in the end.

        Raises:
            RequestError, OverloadedError, UnavailableError
        """
        request = parse_request(body, CompletionRequest)
        model = self.model(request.model)
        prompts = [await model.encode(prompt) for prompt in request.prompts]
        generation = Generation(self._router, model, request, prompts, "prompt", continues_text=True)
        return Started(request, generation, CompletionFormat(request), len(prompts) * (request.n or 1))

    def model(self, name: str) -> ServedModel:
        """Raises UnknownModelError."""
        model = self._models.get(name)
        if model is None:
            known = ", ".join(sorted(self._models))
            raise UnknownModelError(f"model {name!r} is not served here; served: {known}", "model")
        return model

    def model_list(self) -> JsonObject:
        return {"object": "list", "data": [self.model_object(name) for name in sorted(self._models)]}

    def model_object(self, name: str) -> JsonObject:
        """Raises UnknownModelError."""
        model = self.model(name)
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "nfold",
            "max_model_len": model.max_model_len,
            **({"simulated": True} if model.is_simulated else {}),
        }
