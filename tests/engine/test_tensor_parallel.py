"""Several ranks give the tokens of one, and none waits for ever for another that is gone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import CPU, Case, greedy, load_engine, make_settings, random_prompts
from fake_graphs import broken_graphs, fake_graphs, has_graphs
from nfold.kernels.avx512 import library
from nfold.models.engine.core import DecodeSteps, EngineCore
from nfold.models.engine.generate import generate
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import SamplingParams, SubmitBatch
from nfold.models.engine.tp_loop import follow
from nfold.models.engine.tp_messages import Message, MessageKind
from nfold.models.errors import EngineError
from nfold.models.parallel import TpGroup
from tp_engines import TIMEOUT_S, Ranks, spawn_dying_leader, tp_group

SCHEDULES: dict[int, list[dict[str, Any]]] = {
    2: [
        {"max_num_batched_tokens": 1024},
        {"max_num_batched_tokens": 60, "num_kv_blocks": 20, "prefix_cache": False},
        {"max_num_batched_tokens": 60, "overlap": True},
    ],
    4: [{"max_num_batched_tokens": 30, "num_kv_blocks": 13}],
}
FEW = 14  # tokens: a step of 4 ranks on 2 busy cores takes a twentieth of a second


def run_to_the_end(engine: NativeEngine) -> None:
    while engine.has_work():
        engine.step()


@pytest.mark.parametrize("size", SCHEDULES)
def test_ranks_together_give_the_tokens_of_transformers(cases: dict[str, Case], size: int, tmp_path: Path) -> None:
    jobs = [
        (case, make_settings(case.checkpoint, tp=size, **schedule))
        for case in cases.values()
        for schedule in SCHEDULES[size]
    ]
    with tp_group(size, tmp_path / "meeting", [settings for _, settings in jobs]) as (tp, _):
        for case, settings in jobs:
            engine = NativeEngine.load(settings, tp, CPU, heartbeat_s=0.01)
            check_answers(engine, case, num_prompts=6 if size == 4 else len(case.prompts))
            check_abort(engine)
            assert (engine.stats().total_preemptions > 0) == (engine.info.max_model_len < 512)
            engine.close()


@pytest.mark.parametrize(
    ("one_shot", "decodes", "overlap"), [(False, "graphs", False), (True, "graphs", False), (True, "padded", True)]
)
def test_ranks_pad_and_replay_alike(
    cases: dict[str, Case], one_shot: bool, decodes: DecodeSteps, overlap: bool, tmp_path: Path
) -> None:
    needs_compiled_ops()
    case, how = cases["llama3"], Ranks(one_shot, decodes, [fake_graphs])
    settings = make_settings(case.checkpoint, tp=2, max_num_batched_tokens=60, num_kv_blocks=20, overlap=overlap)
    with tp_group(2, tmp_path / "meeting", [settings], how) as (tp, _):
        engine = how.load(settings, tp)
        assert has_graphs(engine) == (decodes == "graphs")
        check_answers(engine, case, len(case.prompts))
        check_abort(engine)
        assert engine.stats().total_preemptions > 0
        engine.close()


def test_where_one_rank_cannot_capture_none_replays(
    cases: dict[str, Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needs_compiled_ops()
    case, how = cases["llama2"], Ranks(decodes="graphs", graphs=[fake_graphs, broken_graphs])
    settings = make_settings(case.checkpoint, tp=2)
    with tp_group(2, tmp_path / "meeting", [settings], how) as (tp, _):
        engine = how.load(settings, tp)
        assert not has_graphs(engine)
        assert "no graphs, so kernels of a step are launched one by one: another rank failed" in caplog.text
        check_answers(engine, case, 4)
        engine.close()


def needs_compiled_ops() -> None:
    if library.load() is None:
        pytest.skip("fake graphs need kernels that read contexts on the device: AVX-512 and a C++ compiler")


def check_answers(engine: NativeEngine, case: Case, num_prompts: int) -> None:
    prompts, expected = case.prompts[:num_prompts], [answer[:FEW] for answer in case.answers[:num_prompts]]
    hot = SamplingParams(max_tokens=FEW, temperature=0.7, top_p=0.9, seed=5, ignore_eos=True)
    one_rank = generate(load_engine(case.checkpoint), prompts[:2], [hot] * 2)
    completions = generate(engine, prompts + prompts[:2], [greedy(FEW)] * num_prompts + [hot] * 2)
    answers = [completion.token_ids.tolist() for completion in completions]
    assert answers[:-2] == expected
    assert answers[-2:] == [completion.token_ids.tolist() for completion in one_rank]


def check_abort(engine: NativeEngine) -> None:
    engine.submit(SubmitBatch.build([1, 2], random_prompts(9, 30), [greedy(6)] * 2))
    engine.step()
    engine.abort(np.array([2], np.uint64))
    run_to_the_end(engine)
    assert engine.stats().num_kv_blocks_used == 0


def test_a_rank_that_dies_fails_the_idle_engine(checkpoint: Path, tmp_path: Path) -> None:
    settings = make_settings(checkpoint, tp=2)
    with tp_group(2, tmp_path / "meeting", [settings]) as (tp, ranks):
        engine = NativeEngine.load(settings, tp, CPU, heartbeat_s=0.1)
        generate(engine, random_prompts(5), [greedy(3)])
        assert not engine.has_work()
        ranks[0].kill()
        assert engine._leader is not None
        engine._leader._thread.join(TIMEOUT_S)  # ends when a heartbeat fails
        assert engine.has_work()
        for _ in range(2):
            with pytest.raises(EngineError, match="rank 0 of 2"):
                engine.step()
        engine.close()


def test_a_rank_that_dies_fails_the_working_engine(checkpoint: Path, tmp_path: Path) -> None:
    settings = make_settings(checkpoint, tp=2)
    with tp_group(2, tmp_path / "meeting", [settings]) as (tp, ranks):
        engine = NativeEngine.load(settings, tp, CPU)
        engine.submit(SubmitBatch.build([1], random_prompts(5), [greedy(400)]))
        engine.step()
        ranks[0].kill()
        with pytest.raises(EngineError, match="rank 0 of 2"):
            run_to_the_end(engine)
        engine.close()


def test_followers_end_when_rank_0_dies(checkpoint: Path, tmp_path: Path) -> None:
    settings = make_settings(checkpoint, tp=2)
    leader = spawn_dying_leader(2, tmp_path / "meeting", settings)
    tp = TpGroup.connect(1, 2, f"file://{tmp_path / 'meeting'}", CPU, TIMEOUT_S)
    engine = NativeEngine.load(settings, tp, CPU)
    with pytest.raises(EngineError, match="rank 1 of 2"):
        follow(engine)
    tp.close()
    leader.join(TIMEOUT_S)


class ScriptedGroup(TpGroup):
    """A rank 1 that hears the given messages from nobody."""

    def __init__(self, *messages: Message) -> None:
        super().__init__(1, 2, None, None)
        self._script = [message.encode() for message in messages]

    def broadcast_bytes(self, payload: bytes | None) -> bytes:
        assert payload is None
        return self._script.pop(0)


def follow_script(checkpoint: Path, *messages: Message) -> EngineCore:
    engine = load_engine(checkpoint)
    follow(NativeEngine(engine.core, engine.core._settings, ScriptedGroup(*messages)))
    return engine.core


def test_a_follower_computes_at_steps_and_not_at_heartbeats(checkpoint: Path) -> None:
    batch = SubmitBatch.build([1], random_prompts(5), [greedy(3)])
    step, heartbeat = Message(MessageKind.STEP, commands=[batch]), Message(MessageKind.HEARTBEAT)
    core = follow_script(checkpoint, heartbeat, step, heartbeat, Message(MessageKind.STOP))
    assert core.num_steps == 1
    assert core.stats().total_output_tokens == 1


def test_a_rank_that_drifts_apart_fails_loudly(checkpoint: Path) -> None:
    batch = SubmitBatch.build([1], random_prompts(5), [greedy(3)])
    first = Message(MessageKind.STEP, commands=[batch])
    with pytest.raises(EngineError, match="rank 1 of 2 is out of step"):
        follow_script(checkpoint, first, Message(MessageKind.STEP, step=1, checksum=12345))
    with pytest.raises(EngineError, match="rank 1 of 2 is out of step"):
        follow_script(checkpoint, Message(MessageKind.STEP, step=3))
