"""The OpenAI API through ASGI, over a router that answers from a script."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from nfold.deployments.openai.api import OpenAIApi
from nfold.deployments.openai.http import build_http_app
from nfold.deployments.router import TokenChunk
from nfold.deployments.served_model import ServedModel
from nfold.models.engine.protocol import FinishReason, SamplingParams
from nfold.models.errors import EngineError, OverloadedError, UnavailableError
from scripted_router import Script, ScriptedRouter, chunks_of

LIMIT = 64
BODY_LIMIT = 4096
MODEL = "tiny"
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
PROMPT = {"model": MODEL, "prompt": "hi"}


def says(model: ServedModel, text: str, finish: FinishReason = FinishReason.LENGTH, size: int = 1) -> Script:
    ids = model.tokenizer.encode(text)
    return lambda prompt, params: chunks_of(ids[: params.max_tokens], finish, size)


def client_for(router: Any, model: ServedModel, ready: bool = True) -> httpx.AsyncClient:
    app = build_http_app(OpenAIApi(router, {MODEL: model}), lambda: ready, BODY_LIMIT)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://nfold")


def post(router: Any, model: ServedModel, path: str, **request: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        async with client_for(router, model) as client:
            return await client.post(path, **request)

    return asyncio.run(go())


def chat(router: Any, model: ServedModel, **fields: Any) -> httpx.Response:
    return post(router, model, "/v1/chat/completions", json=HELLO | fields)


def complete(router: Any, model: ServedModel, **fields: Any) -> httpx.Response:
    return post(router, model, "/v1/completions", json=PROMPT | fields)


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [part.removeprefix("data: ") for part in response.text.strip().split("\n\n")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_chat(model: ServedModel) -> None:
    router = ScriptedRouter(says(model, "the answer", FinishReason.LENGTH))
    answer = chat(router, model, max_tokens=20, temperature=0).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "the answer"
    assert answer["choices"][0]["finish_reason"] == "length"
    ((_, prompt, params, stream),) = router.submitted
    assert model.tokenizer.decode(prompt) == "user\nhiassistant\n"
    assert (params.max_tokens, params.temperature, stream) == (20, 0.0, False)
    num_answer = len(model.tokenizer.encode("the answer"))
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": num_answer,
        "total_tokens": len(prompt) + num_answer,
    }


def test_chat_stream(model: ServedModel) -> None:
    router = ScriptedRouter(says(model, "the answer", size=2))
    *chunks, usage, done = events(chat(router, model, stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "the answer"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(model.tokenizer.encode("the answer"))
    assert router.submitted[0][3] is True


def test_completion_of_texts_ids_and_several_choices(model: ServedModel) -> None:
    router = ScriptedRouter(lambda prompt, params: chunks_of([*prompt, params.seed % 100]))
    answer = complete(router, model, prompt=["ab", "c"], n=2, seed=65, max_tokens=5).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    seeds = [params.seed for _, _, params, _ in router.submitted]
    assert seeds == [65, 66, 65, 66]
    assert [choice["text"][:-1] for choice in answer["choices"]] == ["ab", "ab", "c", "c"]
    assert answer["usage"]["prompt_tokens"] == 3
    complete(router, model, prompt=[5, 6])
    complete(router, model, prompt=[[5], [6]])
    assert [prompt for _, prompt, _, _ in router.submitted[4:]] == [[5, 6], [5], [6]]


def test_completion_stream_has_no_role(model: ServedModel) -> None:
    *chunks, done = events(complete(ScriptedRouter(says(model, "abc")), model, stream=True))
    assert done == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", "c"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_its_request(model: ServedModel, stream: bool) -> None:
    router = ScriptedRouter(says(model, "one two three four"))
    response = complete(router, model, stop=["three"], stream=stream)
    if stream:
        *chunks, _ = events(response)
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        finish = chunks[-1]["choices"][0]["finish_reason"]
    else:
        text, finish = response.json()["choices"][0]["text"], response.json()["choices"][0]["finish_reason"]
    assert (text, finish) == ("one two ", "stop")
    assert router.aborted == [0]
    assert router.submitted[0][3] is True, "only a stream can be ended early"


def test_the_id_that_ends_an_answer_is_not_in_its_text(model: ServedModel) -> None:
    router = ScriptedRouter(says(model, "abc", FinishReason.STOP, size=3))
    answer = complete(router, model, stop_token_ids=model.tokenizer.encode("c")).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("ab", "stop")
    assert answer["usage"]["completion_tokens"] == 3
    assert router.submitted[0][2].stop_token_ids == tuple(model.tokenizer.encode("c"))


def with_logprobs(ids: Sequence[int]) -> Script:
    def script(_: Sequence[int], params: SamplingParams) -> list[TokenChunk]:
        rivals = [[id, id + 1][: params.num_logprobs] for id in ids]
        tops = [[-0.5, -1.5][: params.num_logprobs] for _ in ids]
        return [TokenChunk(list(ids), FinishReason.LENGTH, 1, [-0.5] * len(ids), rivals, tops)]

    return script


def test_logprobs(model: ServedModel) -> None:
    ids = model.tokenizer.encode("ac")
    router = ScriptedRouter(with_logprobs(ids))
    first, second = chat(router, model, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["logprob"], first["bytes"]) == ("a", -0.5, [97])
    assert [(rival["token"], rival["logprob"]) for rival in second["top_logprobs"]] == [("c", -0.5), ("d", -1.5)]
    assert complete(router, model, logprobs=2).json()["choices"][0]["logprobs"] == {
        "tokens": ["a", "c"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5, "b": -1.5}, {"c": -0.5, "d": -1.5}],
        "text_offset": [0, 1],
    }
    assert [params.num_logprobs for _, _, params, _ in router.submitted] == [2, 2]
    assert chat(router, model).json()["choices"][0]["logprobs"] is None


def test_sampling_defaults_and_extensions(model: ServedModel) -> None:
    router = ScriptedRouter(says(model, "a"))
    chat(router, model)
    chat(router, model, temperature=0.5, top_p=0.9, top_k=40, seed=-1, ignore_eos=True, max_completion_tokens=7)
    (_, prompt, default, _), (_, _, set_, _) = router.submitted
    assert (default.temperature, default.top_p, default.top_k, default.ignore_eos) == (1.0, 1.0, 0, False)
    assert default.max_tokens == LIMIT - len(prompt), "the rest of the context"
    assert set_ == SamplingParams(7, 0.5, 40, 0.9, 2**64 - 1, True)


@pytest.mark.parametrize(
    ("path", "request_", "status", "param", "code", "phrase"),
    [
        ("chat/completions", {"content": b"{"}, 400, None, None, "not JSON"),
        ("chat/completions", {"content": b"[1]"}, 400, None, None, "Expected `object`"),
        ("chat/completions", {"json": {"model": MODEL}}, 400, "messages", None, "missing"),
        ("chat/completions", {"json": HELLO | {"messages": []}}, 400, "messages", None, "length >= 1"),
        ("chat/completions", {"json": HELLO | {"max_tokens": 0}}, 400, "max_tokens", None, ">= 1"),
        ("chat/completions", {"json": HELLO | {"max_tokens": "5"}}, 400, "max_tokens", None, "got `str`"),
        ("chat/completions", {"json": HELLO | {"temperature": -1}}, 400, "temperature", None, ">= 0"),
        ("chat/completions", {"json": HELLO | {"top_p": 0}}, 400, "top_p", None, "> 0"),
        ("chat/completions", {"json": HELLO | {"n": 0}}, 400, "n", None, ">= 1"),
        ("chat/completions", {"json": HELLO | {"tools": [{}]}}, 400, "tools", None, "not supported"),
        ("chat/completions", {"json": HELLO | {"presence_penalty": 1}}, 400, "presence_penalty", None, "not supp"),
        ("chat/completions", {"json": HELLO | {"top_logprobs": 3}}, 400, "top_logprobs", None, "logprobs: true"),
        ("chat/completions", {"json": HELLO | {"stream_options": {}}}, 400, "stream_options", None, "stream: true"),
        ("chat/completions", {"json": HELLO | {"model": "other"}}, 404, "model", "model_not_found", "served: tiny"),
        (
            "chat/completions",
            {"json": HELLO | {"messages": [{"role": "user", "content": "x" * LIMIT}]}},
            *(400, "messages", "context_length_exceeded", "holds 64 tokens"),
        ),
        (
            "completions",
            {"json": PROMPT | {"max_tokens": 63}},
            400,
            "max_tokens",
            "context_length_exceeded",
            "most 62",
        ),
        ("completions", {"json": PROMPT | {"prompt": ""}}, 400, "prompt", None, "empty"),
        ("completions", {"json": PROMPT | {"prompt": [1, 300]}}, 400, "prompt", None, "300 is no token id"),
        ("completions", {"json": PROMPT | {"prompt": [1, "a"]}}, 400, "prompt", None, "do not mix"),
        ("completions", {"json": PROMPT | {"echo": True}}, 400, "echo", None, "not supported"),
        ("completions", {"content": b" " * (BODY_LIMIT + 1)}, 413, None, "body_too_large", "limit of 4096"),
        ("nothing", {"json": {}}, 404, None, None, "/v1/nothing"),
    ],
)
def test_bad_input_is_refused_in_openai_form(
    model: ServedModel, path: str, request_: Any, status: int, param: str | None, code: str | None, phrase: str
) -> None:
    router = ScriptedRouter(says(model, "a"))
    response = post(router, model, f"/v1/{path}", **request_)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert phrase in error["message"]
    assert router.submitted == []


def test_a_body_of_unknown_length_is_cut_at_the_limit(model: ServedModel) -> None:
    sent: list[int] = []

    async def endless() -> Any:
        while True:
            sent.append(1)
            yield b" " * 1024

    response = post(ScriptedRouter(says(model, "a")), model, "/v1/completions", content=endless())
    assert response.status_code == 413
    assert len(sent) <= BODY_LIMIT // 1024 + 2


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (OverloadedError("the queue is full", 2.6), 429, {"retry-after": "3"}),
        (OverloadedError("the queue is full", 0.01), 429, {"retry-after": "1"}),
        (UnavailableError("no replica"), 503, {"retry-after": "1"}),
        (EngineError("broken"), 500, {}),
        (ZeroDivisionError("a bug"), 500, {}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_router_have_their_status(
    model: ServedModel, error: Exception, status: int, headers: dict[str, str], stream: bool
) -> None:
    response = chat(ScriptedRouter(says(model, "a"), raises=error), model, stream=stream)
    assert response.status_code == status
    assert headers.items() <= dict(response.headers).items()
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_before_its_first_token_has_a_status(model: ServedModel, stream: bool) -> None:
    router = ScriptedRouter(lambda *_: chunks_of([], FinishReason.ERROR, error="three replicas died"))
    response = chat(router, model, stream=stream)
    assert (response.status_code, response.json()["error"]["message"]) == (500, "three replicas died")


def test_a_stream_that_fails_half_way_says_so_and_is_not_done(model: ServedModel) -> None:
    a = model.tokenizer.encode("a")
    script = [TokenChunk(a, FinishReason.NONE, 1), TokenChunk([], FinishReason.ERROR, 1, error="died")]
    *_, text, error = events(chat(ScriptedRouter(lambda *_: list(script)), model, stream=True))
    assert text["choices"][0]["delta"]["content"] == "a"
    assert error["error"]["message"] == "died"


def get(model: ServedModel, path: str, ready: bool = True) -> httpx.Response:
    async def go() -> httpx.Response:
        async with client_for(ScriptedRouter(says(model, "a")), model, ready) as client:
            return await client.get(path)

    return asyncio.run(go())


def test_models_and_health(model: ServedModel) -> None:
    assert [entry["id"] for entry in get(model, "/v1/models").json()["data"]] == [MODEL]
    assert get(model, f"/v1/models/{MODEL}").json()["max_model_len"] == LIMIT
    assert get(model, "/v1/models/org/other").status_code == 404
    assert get(model, "/health").status_code == 200
    assert get(model, "/health", ready=False).status_code == 503


class LeavingClient:
    """An ASGI client that goes away after the first piece of the response, or before any."""

    def __init__(self, body: dict[str, Any], leave_at_once: bool) -> None:
        self.sent: list[Any] = []
        self._messages: Iterator[Any] = iter([{"type": "http.request", "body": json.dumps(body).encode()}])
        self._leaving = asyncio.Event()
        if leave_at_once:
            self._leaving.set()

    async def receive(self) -> Any:
        message = next(self._messages, None)
        if message is None:
            await self._leaving.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self._leaving.set()


@pytest.mark.parametrize(("stream", "leave_at_once"), [(True, False), (True, True), (False, True)])
def test_a_client_that_goes_away_aborts_its_request(model: ServedModel, stream: bool, leave_at_once: bool) -> None:
    endless = [TokenChunk(model.tokenizer.encode("a"), FinishReason.NONE, 1) for _ in range(10**4)]
    router = ScriptedRouter(lambda *_: list(endless))
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}

    async def go() -> LeavingClient:
        client = LeavingClient(PROMPT | {"stream": stream, "n": 2}, leave_at_once)
        app = build_http_app(OpenAIApi(router, {MODEL: model}), lambda: True, BODY_LIMIT)  # pyright: ignore
        await asyncio.wait_for(app(scope, client.receive, client.send), timeout=20)
        return client

    client = asyncio.run(go())
    assert set(router.aborted) == {0, 1}
    assert not any(b"[DONE]" in message.get("body", b"") for message in client.sent)
