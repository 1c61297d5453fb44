"""How requests end, what stats say, and what bad requests get."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from engines import CPU, greedy, load_engine, make_settings, random_prompts
from nfold.models.engine.generate import generate
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import Engine, FinishReason, SamplingParams, SubmitBatch
from nfold.models.errors import ConfigError, EngineError
from nfold.models.parallel import TpGroup

PROMPT = random_prompts(20, seed=5)[0]


@pytest.fixture(scope="module", params=[False, True], ids=["one by one", "overlap"])
def overlap(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def engine(checkpoint: Path, overlap: bool) -> NativeEngine:
    return load_engine(checkpoint, max_model_len=100, num_kv_blocks=64, overlap=overlap)


def test_it_is_an_engine(engine: NativeEngine) -> None:
    assert isinstance(engine, Engine)
    assert engine.info.engine == "native"
    assert (engine.info.max_model_len, engine.info.max_num_seqs) == (100, 256)
    assert engine.info.settings["num_kv_blocks"] == 64


def test_a_stop_id_ends_the_answer_and_is_part_of_it(engine: NativeEngine) -> None:
    (free,) = generate(engine, [PROMPT], [greedy(12)])
    tokens = free.token_ids.tolist()
    stop = tokens[5]
    sampling = [greedy(12, stop_token_ids=(300, stop)), greedy(12, stop_token_ids=(stop,)), greedy(12)]
    completions = generate(engine, [PROMPT] * 3, sampling)
    assert [completion.finish for completion in completions] == [
        FinishReason.STOP,
        FinishReason.STOP,
        FinishReason.LENGTH,
    ]
    ended = tokens[: tokens.index(stop) + 1]
    assert [completion.token_ids.tolist() for completion in completions] == [ended, ended, tokens]
    others = generate(engine, [PROMPT] * 3, [greedy(12, stop_token_ids=(299,))] * 3)
    assert [completion.token_ids.tolist() for completion in others] == [tokens] * 3


def test_end_of_sequence_ids_of_the_checkpoint_end_the_answer(checkpoint: Path, tmp_path: Path) -> None:
    tokens = generate(load_engine(checkpoint), [PROMPT], [greedy(12)])[0].token_ids.tolist()
    other = shutil.copytree(checkpoint, tmp_path / "model")
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [300, tokens[4]]}))
    engine = load_engine(other)
    heeding, ignoring = generate(engine, [PROMPT] * 2, [SamplingParams(max_tokens=12), greedy(12)])
    assert heeding.token_ids.tolist() == tokens[: tokens.index(tokens[4]) + 1]
    assert heeding.finish == FinishReason.STOP
    assert ignoring.token_ids.tolist() == tokens
    assert ignoring.finish == FinishReason.LENGTH


def test_the_last_token_may_be_a_stop(engine: NativeEngine) -> None:
    (one,) = generate(engine, [PROMPT], [greedy(1)])
    assert one.finish == FinishReason.LENGTH
    (stopped,) = generate(engine, [PROMPT], [greedy(1, stop_token_ids=(int(one.token_ids[0]),))])
    assert stopped.finish == FinishReason.STOP


def test_max_model_len_ends_the_answer(engine: NativeEngine) -> None:
    (long, exact) = generate(engine, random_prompts(70, 99), [greedy(500), greedy(1)])
    assert (len(long.token_ids), long.finish) == (30, FinishReason.LENGTH)
    assert (len(exact.token_ids), exact.finish) == (1, FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        ([1] * 100, greedy(1)),
        ([1] * 5000, greedy(1)),
        ([], greedy(4)),
        ([1, 301], greedy(4)),
        ([1, -2], greedy(4)),
        ([1], greedy(0)),
        ([1], SamplingParams(max_tokens=4, temperature=float("nan"))),
        ([1], SamplingParams(max_tokens=4, temperature=1.0, top_p=0.0)),
    ],
)
def test_what_can_never_be_served_is_an_error_row_at_the_next_step(
    engine: NativeEngine, prompt: list[int], sampling: SamplingParams
) -> None:
    engine.submit(SubmitBatch.build([7, 8], [prompt, PROMPT], [sampling, greedy(2, num_logprobs=2)]))
    assert engine.has_work()
    outputs = engine.step()
    assert outputs.request_ids.tolist() == [8, 7]
    assert outputs.token_ids[1] == -1
    assert outputs.finish.tolist() == [FinishReason.NONE, FinishReason.ERROR]
    assert outputs.top_ids.shape == outputs.top_logprobs.shape == (2, 2)
    assert np.isnan(outputs.logprobs[1])
    engine.step()
    assert not engine.has_work()


def test_an_error_row_comes_alone_too(engine: NativeEngine) -> None:
    (completion,) = generate(engine, [[1] * 100], [greedy(1)])
    assert (len(completion.token_ids), completion.finish) == (0, FinishReason.ERROR)
    engine.submit(SubmitBatch.build([1], [[]], [greedy(1)]))
    engine.abort(np.array([1], np.uint64))
    assert not engine.has_work()


def test_a_step_without_work_is_empty(engine: NativeEngine) -> None:
    outputs = engine.step()
    assert len(outputs) == 0
    assert outputs.step.num_prefill_tokens == outputs.step.num_decode_tokens == 0


def test_abort_frees_blocks_at_once_and_gives_no_more_rows(checkpoint: Path, overlap: bool) -> None:
    engine = load_engine(checkpoint, max_num_seqs=2, overlap=overlap)
    engine.submit(SubmitBatch.build([1, 2, 3], [PROMPT] * 3, [greedy(20)] * 3))
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 1)
    assert stats.num_kv_blocks_used == 4  # two blocks shared, the third of each its own
    engine.abort(np.array([2, 3, 99], np.uint64))
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_kv_blocks_used) == (1, 0, 3)
    rows: list[int] = []
    while engine.has_work():
        rows += engine.step().request_ids.tolist()
    assert rows == [1] * 19
    engine.submit(SubmitBatch.build([2], [PROMPT], [greedy(3)]))
    assert engine.step().request_ids.tolist() == [2]


def test_totals_are_exact(checkpoint: Path) -> None:
    engine = load_engine(checkpoint, num_kv_blocks=16, max_num_batched_tokens=30, prefix_cache=False)
    prompts = random_prompts(40, 30, 20, 10)
    engine.submit(SubmitBatch.build(range(4), prompts, [greedy(50)] * 4))
    steps = []
    while engine.has_work():
        steps.append(engine.step())
    stats = engine.stats()
    assert stats.total_steps == len(steps)
    assert stats.total_prompt_tokens == 100
    assert stats.total_output_tokens == sum(map(len, steps)) == 200
    assert stats.total_cached_prompt_tokens == 0
    assert stats.total_preemptions > 0
    recomputed = sum(step.step.num_recomputed_tokens for step in steps)
    assert stats.total_recomputed_tokens == recomputed > 0
    computed = sum(step.step.num_prefill_tokens + step.step.num_decode_tokens for step in steps)
    assert computed - recomputed == 100 + 200 - 4
    assert stats.total_step_s == pytest.approx(sum(step.step.step_s for step in steps))
    assert max(step.step.num_prefill_tokens + step.step.num_decode_tokens for step in steps) <= 30


def test_what_torch_raises_becomes_an_engine_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(checkpoint)

    def out_of_memory(*_: object) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(engine.core._model, "forward", out_of_memory)
    engine.submit(SubmitBatch.build([1], [PROMPT], [greedy(2)]))
    for _ in range(2):
        with pytest.raises(EngineError, match="no memory left"):
            engine.step()


def test_bad_settings_name_the_field(checkpoint: Path) -> None:
    for field in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
        with pytest.raises(ConfigError, match=f"{field}: got 0; must be at least 1"):
            load_engine(checkpoint, **{field: 0})
    with pytest.raises(ConfigError, match="max_model_len: got 513; must not exceed the model's 512"):
        load_engine(checkpoint, max_model_len=513)
    with pytest.raises(ConfigError, match="max_model_len: got 129; the KV cache holds 128 tokens"):
        load_engine(checkpoint, max_model_len=129, num_kv_blocks=16)
    with pytest.raises(ConfigError, match="kv_cache_bytes: got 0"):
        load_engine(checkpoint, num_kv_blocks=0)
    small = make_settings(checkpoint, num_kv_blocks=16)
    assert NativeEngine.load(small, TpGroup.single(), CPU).info.max_model_len == 128
