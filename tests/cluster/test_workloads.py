"""Workloads: the same for a seed, within the model's context, and judged where they can be."""

import numpy as np
import pytest
from nfold.cluster.workloads import make_workload, random_workload
from nfold.deployments.config import ServedModelConfig
from nfold.models.errors import ConfigError
from nfold.models.sums import is_held_out, questions
from nfold.models.tokenizer import Tokenizer

EMBEDDED = ServedModelConfig(name="nfold-sums").directory


def test_random_lengths_are_log_normal_around_their_medians_and_fit() -> None:
    workload = random_workload(1000, 2000, prompt_tokens=64, output_tokens=32, max_model_len=256)
    prompts = np.array([len(prompt) for prompt in workload.prompts])
    outputs = np.array([sampling.max_tokens for sampling in workload.sampling])
    assert np.median(prompts) == pytest.approx(64, rel=0.1)
    assert np.median(outputs) == pytest.approx(32, rel=0.1)
    assert np.log(outputs).std() == pytest.approx(0.5, rel=0.1)
    assert (prompts + outputs).max() <= 256
    assert prompts.min() >= 1
    assert max(int(prompt.max()) for prompt in workload.prompts) < 1000
    assert all(sampling.ignore_eos for sampling in workload.sampling)


def test_equal_seeds_give_equal_requests() -> None:
    one, other, third = (random_workload(1000, 5, max_model_len=512, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one.prompts, other.prompts, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one.prompts, third.prompts, strict=True))


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="must fit into the model's 100 tokens"):
        random_workload(1000, 5, prompt_tokens=80, output_tokens=40, max_model_len=100)


def test_sums_asks_held_out_questions_and_judges_the_replies() -> None:
    workload = make_workload("sums", EMBEDDED, max_model_len=256)
    tokenizer = Tokenizer.load(EMBEDDED)
    asked = list(questions(len(workload), seed=0, held_out=True))
    assert workload.check is not None
    assert all(is_held_out(question.left, question.right) for question in asked)
    right = tokenizer.encode(asked[0].reply)
    assert workload.check(0, right)
    assert not workload.check(1, right)
    assert asked[0].text in tokenizer.decode(workload.prompts[0].tolist())


@pytest.mark.parametrize("name", ["sum", "random-1", "random-a-b", "random-1-2-3"])
def test_an_unknown_workload_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        make_workload(name, EMBEDDED, max_model_len=256)


def test_random_by_name() -> None:
    workload = make_workload("random-20-10", EMBEDDED, max_model_len=256)
    assert workload.name == "random-20-10"
    assert workload.check is None
