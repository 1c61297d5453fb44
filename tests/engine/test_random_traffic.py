"""Requests that come, end, stop, are aborted and preempted get the tokens that they get alone, however steps are
computed and whenever they are read."""

import random
from pathlib import Path

import numpy as np
import pytest
from engines import greedy, load_engine_of
from nfold.models.engine.core import DecodeSteps
from nfold.models.engine.generate import generate
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import FinishReason, SamplingParams, SubmitBatch

NUM_REQUESTS = 40


def random_requests(rng: random.Random) -> list[tuple[list[int], SamplingParams]]:
    """Prompts share beginnings now and then; of their tokens some are drawn, some stop early."""
    beginning = [rng.randrange(256) for _ in range(30)]
    requests = []
    for number in range(NUM_REQUESTS):
        prompt = beginning[: rng.choice([0, 0, 9, 30])] + [rng.randrange(256) for _ in range(rng.randint(1, 40))]
        stops = tuple(rng.sample(range(256), rng.choice([0, 8])))
        temperature, top_k = rng.choice([0.0, 0.0, 0.8, 1.5]), rng.choice([0, 6])
        sampling = greedy(
            rng.randint(1, 40), temperature=temperature, top_k=top_k, seed=number, stop_token_ids=stops
        )
        requests.append((prompt, sampling))
    return requests


def serve(
    engine: NativeEngine, requests: list[tuple[list[int], SamplingParams]], rng: random.Random
) -> tuple[list[list[int]], list[int]]:
    """The answers, and the requests that were aborted before they ended. Requests come a few at a time."""
    answers: list[list[int]] = [[] for _ in requests]
    waiting, running, aborted = list(range(len(requests))), set[int](), []
    while waiting or engine.has_work():
        for _ in range(rng.choice([0, 0, 1, 4])):
            if waiting:
                number = waiting.pop(0)
                engine.submit(SubmitBatch.build([number], [requests[number][0]], [requests[number][1]]))
                running.add(number)
        if running and rng.random() < 0.05:
            aborted.append(rng.choice(sorted(running)))
            running.remove(aborted[-1])
            engine.abort(np.array(aborted[-1:], np.uint64))
        outputs = engine.step()
        for number, token_id, finish in zip(
            outputs.request_ids.tolist(), outputs.token_ids.tolist(), outputs.finish.tolist(), strict=True
        ):
            assert number in running
            answers[number].append(token_id)
            if finish != FinishReason.NONE:
                running.remove(number)
    return answers, aborted


@pytest.mark.parametrize("overlap", [False, True], ids=["one by one", "overlap"])
@pytest.mark.parametrize("decodes", ["plain", "padded"])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_those_of_each_request_alone(
    checkpoint: Path, seed: int, decodes: DecodeSteps, overlap: bool
) -> None:
    rng = random.Random(seed)
    requests = random_requests(rng)
    engine = load_engine_of(
        checkpoint,
        decodes=decodes,
        num_kv_blocks=16,
        # 12 leave a single token of a prompt beside 11 decodes.
        max_num_batched_tokens=(12, 50, 1024)[seed],
        overlap=overlap,
    )
    answers, aborted = serve(engine, requests, rng)
    alone = load_engine_of(checkpoint, decodes="plain")
    for number, (prompt, sampling) in enumerate(requests):
        (wanted,) = generate(alone, [prompt], [sampling])
        got, token_ids = answers[number], wanted.token_ids.tolist()
        assert got == (token_ids[: len(got)] if number in aborted else token_ids)
    stats = engine.stats()
    assert stats.total_preemptions > 0
    assert stats.num_kv_blocks_used == 0
    assert aborted
