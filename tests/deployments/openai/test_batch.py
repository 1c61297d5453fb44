"""Batches through a Serve handle: any number of prompts, few at once."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from nfold.deployments.openai.batch import generate_batch
from nfold.deployments.served_model import ServedModel
from nfold.models.engine.protocol import FinishReason, SamplingParams
from nfold.models.errors import ContextLengthError, EngineError, OverloadedError, RequestError
from scripted_router import ScriptedRouter, chunks_of


def run(router: Any, model: ServedModel, prompts: Sequence[Any], sampling: dict[str, Any], window: int = 8) -> Any:
    return asyncio.run(generate_batch(router, model, prompts, sampling, window))


def test_answers_come_in_the_order_of_the_prompts(model: ServedModel) -> None:
    router = ScriptedRouter(lambda prompt, _: chunks_of([prompt[0], 7], size=prompt[0] % 2 + 1))
    answers = run(router, model, [[index] for index in range(30)], {"max_tokens": 2, "seed": 5})
    assert [answer["token_ids"] for answer in answers] == [[index, 7] for index in range(30)]
    assert {answer["finish_reason"] for answer in answers} == {"length"}
    assert [params.seed for _, _, params, _ in router.submitted] == [5] * 30
    assert not any(stream for _, _, _, stream in router.submitted)


def test_no_more_than_the_window_or_the_queue_is_in_flight(model: ServedModel) -> None:
    most: list[int] = []

    def script(prompt: Sequence[int], _: SamplingParams) -> Any:
        most.append(len(router.submitted) - router.num_finished)
        return chunks_of(prompt)

    router = ScriptedRouter(script)
    run(router, model, [[1]] * 20, {}, window=3)
    assert max(most) == 3
    router = ScriptedRouter(script, num_slots=2)
    most.clear()
    assert len(run(router, model, [[1]] * 20, {}, window=5)) == 20
    assert max(most) == 2
    with pytest.raises(OverloadedError):
        run(ScriptedRouter(script, num_slots=0), model, [[1]], {})


def test_a_failed_answer_fails_the_batch_and_aborts_the_rest(model: ServedModel) -> None:
    def script(prompt: Sequence[int], _: SamplingParams) -> Any:
        return chunks_of([], FinishReason.ERROR, error="died") if prompt[0] == 1 else chunks_of([1] * 1000)

    router = ScriptedRouter(script)
    with pytest.raises(EngineError, match="died"):
        run(router, model, [[0], [1], [2]], {})
    assert sorted(router.aborted) == [0, 2]


@pytest.mark.parametrize(
    ("prompts", "sampling", "error", "phrase"),
    [
        ([[1]], {"n": 2}, RequestError, "n does not go with a batch"),
        ([[1]], {"max_tokens": 0}, RequestError, "max_tokens"),
        ([[1], [300]], {}, RequestError, "300 is no token id"),
        ([[1], ""], {}, RequestError, "empty"),
        ([[1] * 64], {}, ContextLengthError, "64 tokens"),
    ],
)
def test_bad_input_submits_nothing(
    model: ServedModel, prompts: Any, sampling: dict[str, Any], error: type[Exception], phrase: str
) -> None:
    router = ScriptedRouter(lambda prompt, _: chunks_of(prompt))
    with pytest.raises(error, match=phrase):
        run(router, model, prompts, sampling)
    assert router.submitted == []
