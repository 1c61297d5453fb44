"""Quantised engines keep the default model's score on held-out questions, and give the same tokens in every run."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from cpu_kernels import kernels
from engines import CPU, greedy, load_engine, random_prompts
from nfold.models.engine.generate import generate
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import SamplingParams
from nfold.models.engine.settings import EngineSettings
from nfold.models.parallel import TpGroup
from nfold.models.sums import CHECKPOINT, Question, is_right, questions
from nfold.models.tokenizer import Tokenizer
from quantized_models import publish
from tp_engines import tp_group

NUM_QUESTIONS = 200
SHARE_TO_KEEP = 0.99
FP8, MXFP4, FP8_CACHE = {"quantization": "fp8"}, {"quantization": "mxfp4"}, {"kv_cache_dtype": "fp8"}


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(model_dir=CHECKPOINT, kv_cache_bytes=32 << 20, **changes)


def load(**changes: Any) -> NativeEngine:
    return NativeEngine.load(settings(**changes), TpGroup.single(), CPU)


class Exam:
    """Held-out questions as prompts, and how many answers of an engine are right."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.load(CHECKPOINT)
        self.questions: list[Question] = list(questions(NUM_QUESTIONS, seed=11, held_out=True))
        self.prompts = [self.tokenizer.encode_chat(question.messages) for question in self.questions]

    def answers(self, engine: NativeEngine, num: int = NUM_QUESTIONS) -> list[list[int]]:
        prompts = self.prompts[:num]
        return [
            completion.token_ids.tolist()
            for completion in generate(engine, prompts, [SamplingParams(max_tokens=64)] * len(prompts))
        ]

    def score(self, answers: list[list[int]]) -> float:
        some = self.questions[: len(answers)]
        right = [
            is_right(self.tokenizer.decode(ids), question.answer)
            for ids, question in zip(answers, some, strict=True)
        ]
        return sum(right) / len(right)


@pytest.fixture(scope="module")
def exam() -> Exam:
    return Exam()


@pytest.fixture(scope="module")
def full_score(exam: Exam) -> float:
    score = exam.score(exam.answers(load()))
    assert score > 0.98
    return score


@pytest.mark.parametrize(
    "changes",
    [FP8, FP8_CACHE, FP8 | FP8_CACHE, MXFP4, MXFP4 | FP8_CACHE],
    ids=["fp8", "fp8 cache", "fp8, fp8 cache", "mxfp4", "mxfp4, fp8 cache"],
)
def test_a_quantised_engine_keeps_the_score(changes: dict[str, str], exam: Exam, full_score: float) -> None:
    assert exam.score(exam.answers(load(**changes))) >= SHARE_TO_KEEP * full_score


@pytest.mark.parametrize("changes", [FP8 | FP8_CACHE, MXFP4 | FP8_CACHE], ids=["fp8", "mxfp4"])
def test_every_run_gives_the_same_tokens(changes: dict[str, str], exam: Exam) -> None:
    assert exam.answers(load(**changes), 24) == exam.answers(load(**changes), 24)


@pytest.mark.parametrize("changes", [FP8, MXFP4], ids=["fp8", "mxfp4"])
def test_the_batch_does_not_change_a_token(changes: dict[str, str], exam: Exam) -> None:
    """What is rounded of a token depends on this token alone."""
    with kernels("compiled"):
        together = exam.answers(load(**changes), 12)
        assert exam.answers(load(max_num_seqs=1, **changes), 12) == together


def test_two_ranks(exam: Exam, full_score: float, tmp_path: Path) -> None:
    """MXFP4 rounds weights only, so two ranks give one rank's tokens. With FP8 each rank rounds its part of what is
    summed over ranks: the score holds, and every run gives the same tokens."""
    num = 100
    exact, rounded = settings(dtype="float32", **MXFP4), settings(**FP8, **FP8_CACHE)
    jobs = [exact, rounded, rounded]
    answers: list[list[list[int]]] = []
    with tp_group(2, tmp_path / "meeting", jobs) as (tp, _):
        for job in jobs:
            engine = NativeEngine.load(job, tp, CPU, heartbeat_s=0.01)
            answers.append(exam.answers(engine, num))
            engine.close()
    assert answers[0] == exam.answers(load(dtype="float32", **MXFP4), num)
    assert answers[1] == answers[2]
    assert exam.score(answers[1]) >= SHARE_TO_KEEP * full_score


def test_an_fp8_cache_holds_twice_the_tokens_in_the_same_bytes() -> None:
    plain, fp8 = load(dtype="bfloat16"), load(dtype="bfloat16", **FP8_CACHE)
    assert fp8.info.settings["kv_cache_dtype"] == "float8_e4m3fn"
    assert fp8.info.settings["num_kv_blocks"] == 2 * int(plain.info.settings["num_kv_blocks"])
    caches = [[*engine.core._kv.k, *engine.core._kv.v] for engine in (plain, fp8)]
    assert sum(tensor.nbytes for tensor in caches[0]) == sum(tensor.nbytes for tensor in caches[1]) == 32 << 20


def test_a_published_checkpoint_with_cache_scales_gets_an_fp8_cache(tmp_path: Path) -> None:
    plain = tiny_models.make_llama(tmp_path / "plain", hidden_size=128, intermediate_size=192)
    engine = load_engine(publish(plain, tmp_path / "model", "quark mxfp4", kv_scales=True))
    assert engine.info.settings["quantization"] == "mxfp4"
    assert engine.info.settings["kv_cache_dtype"] == "float8_e4m3fn"
    [completion] = generate(engine, random_prompts(20), [greedy(10)])
    assert len(completion.token_ids) == 10
    assert engine.core._kv.k[0].view(torch.uint8).any()
