"""Random traffic through the scheduler; the toy engine checks blocks, budget and every key that is read."""

import random

import pytest
from nfold.models.engine.settings import ResolvedSettings
from scheduling import ToyEngine, make_request, make_settings, toy_answer


def random_settings(rng: random.Random) -> ResolvedSettings:
    block_size = rng.choice([1, 2, 4, 16])
    max_model_len = rng.randint(12, 64)
    least = -(-max_model_len // block_size)
    return make_settings(
        max_model_len=max_model_len,
        max_num_seqs=rng.choice([1, 2, 4, 8, 40]),
        max_num_batched_tokens=rng.choice([1, 3, 8, 20, 100, 100]),
        block_size=block_size,
        num_kv_blocks=least + rng.choice([0, 1, least // 2, least, 8 * least]),
        prefix_cache=rng.random() < 0.6,
    )


def random_prompt(rng: random.Random, longest: int) -> list[int]:
    """Few different tokens and shared beginnings, so that the prefix cache has something to find."""
    length = rng.randint(1, longest)
    if rng.random() < 0.6:
        return [rng.choice([5, 6])] * length
    return [rng.randrange(50) for _ in range(length)]


@pytest.mark.parametrize("overlap", [False, True], ids=["one by one", "overlap"])
@pytest.mark.parametrize("seed", range(60))
def test_random_traffic(seed: int, overlap: bool) -> None:
    rng = random.Random(seed)
    settings = random_settings(rng)
    engine = ToyEngine(settings, overlap=overlap)
    wanted: dict[int, tuple[list[int], int]] = {}
    aborted: set[int] = set()
    admitted: list[int] = []
    num_requests = rng.randint(1, 40)
    burst = rng.choice([0.3, 0.6, 0.95])
    max_steps = 3000
    for _ in range(max_steps):
        while len(wanted) < num_requests and rng.random() < burst:
            prompt = random_prompt(rng, settings.max_model_len - 2)
            longest = settings.max_model_len - len(prompt)
            max_tokens = rng.randint(1, rng.choice([longest, min(3, longest)]))
            wanted[len(wanted)] = (prompt, max_tokens)
            engine.submit(make_request(len(wanted) - 1, prompt, max_tokens))
        if wanted and rng.random() < 0.03:
            victim = rng.choice(sorted(wanted))
            engine.scheduler.abort(victim)
            if victim not in engine.ended:
                aborted.add(victim)
        if engine.has_work():
            begun = engine.step_if_possible()
            admitted += [request.request_id for request in begun.admitted] if begun else []
        elif len(wanted) == num_requests:
            break
    else:
        raise AssertionError(f"not done after {max_steps} steps: someone starves")
    for request_id, (prompt, max_tokens) in wanted.items():
        answer = toy_answer(prompt, max_tokens)
        got = engine.answers[request_id]
        assert got == answer[: len(got)]
        assert (request_id in engine.ended) != (request_id in aborted)
        if request_id in engine.ended:
            assert got == answer
    first_admission = list(dict.fromkeys(admitted))
    assert first_admission == sorted(first_admission), "a later arrival overtook an earlier one"
    assert engine.scheduler.pool.num_free == settings.num_kv_blocks
    assert engine.scheduler.totals.output_tokens == sum(map(len, engine.answers.values()))
    if not aborted:
        assert engine.scheduler.totals.prompt_tokens == sum(len(prompt) for prompt, _ in wanted.values())
    computed = sum(int(step.num_new_tokens.sum()) for step in engine.steps)
    assert engine.scheduler.totals.recomputed_tokens <= computed
