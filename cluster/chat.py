"""Asks a running service over its HTTP API, as any OpenAI client would."""

import json
from collections.abc import Iterator
from http import HTTPStatus

import httpx

from ..models.errors import StateError

CONNECT_TIMEOUT_S = 5.0
CHUNK_TIMEOUT_S = 120.0


def stream_chat(api_url: str, model: str, text: str) -> Iterator[str]:
    """The answer to one user message, piece by piece.

    Args:
        api_url: such as `http://127.0.0.1:8000/v1`.

    Raises:
        StateError: the API does not answer, or refuses; the message is the API's.
    """
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True}
    timeout = httpx.Timeout(CHUNK_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        with httpx.stream(
            "POST", f"{api_url}/chat/completions", json=body, timeout=timeout, trust_env=False
        ) as answer:
            if answer.status_code != HTTPStatus.OK:
                raise StateError(f"the API refused: {_error_message(answer.read())}")
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    yield _content(json.loads(line.removeprefix("data: ")))
    except httpx.HTTPError as error:
        raise StateError(f"the API at {api_url} does not answer: {error}") from None


def _content(chunk: dict[str, list[dict[str, dict[str, str]]]]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", []))


def _error_message(body: bytes) -> str:
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return body[:500].decode(errors="replace")
