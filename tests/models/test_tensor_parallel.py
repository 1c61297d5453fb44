"""Ranks in their own processes: the same logits as one rank, bit-identical among themselves."""

import signal
from pathlib import Path
from typing import Any

import pytest
import spawned
import tiny_models
import torch
import tp_ranks
from nfold.kernels.avx512 import library
from nfold.models.config import ModelConfig
from nfold.models.errors import ConfigError, EngineError
from nfold.models.llama import LlamaForCausalLM
from nfold.models.parallel import TpGroup


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Not while ranks wait for each other with short timeouts."""
    library.load()


@pytest.mark.parametrize(
    ("size", "checkpoint", "transport"),
    [
        (2, {"family": "llama2"}, "shared memory"),
        (4, {"family": "llama2", "bias": True}, "shared memory"),
        (2, {"family": "llama3", "tied": True}, "shared memory"),
        (4, {"family": "llama3", "num_kv_heads": 2}, "gloo"),
        (4, {"family": "llama3"}, "one-shot"),
    ],
)
def test_ranks_compute_what_one_rank_computes(
    size: int, checkpoint: dict[str, Any], transport: tp_ranks.Transport, tmp_path: Path
) -> None:
    directory = tiny_models.make_llama(tmp_path / "model", **checkpoint)
    ranks = spawned.on_ranks(tp_ranks.rank_logits, size, str(tmp_path / "meeting"), directory, transport)
    torch.testing.assert_close(ranks[0], tp_ranks.logits_of(directory, TpGroup.single()), atol=1e-4, rtol=0)
    for other in ranks[1:]:
        assert torch.equal(other, ranks[0])


@pytest.mark.parametrize("size", [2, 3])
def test_collectives_give_the_same_through_shared_memory_and_gloo(size: int, tmp_path: Path) -> None:
    for results in spawned.on_ranks(tp_ranks.collectives, size, str(tmp_path / "meeting")):
        shared, gloo = results
        assert shared["shares_memory"] == (library.load() is not None)
        assert not gloo["shares_memory"]
        for result in results:
            for dtype, got in zip(tp_ranks.SUMMED, result["sums"], strict=True):
                wanted = sum(tp_ranks.random(rank, dtype).double() for rank in range(size))
                atol = 0.05 if dtype == torch.bfloat16 else 1e-5  # gloo rounds after each rank
                torch.testing.assert_close(got.double(), wanted, atol=atol, rtol=0)
            assert torch.equal(result["gathered"], torch.arange(size).repeat_interleave(2).repeat(2, 1))
            assert result["messages"]
            assert result["agree"] == [True, False, False]
        if size == 2:
            assert all(map(torch.equal, shared["sums"], gloo["sums"]))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_gpus_sum_alike_eager_and_in_graphs(tmp_path: Path) -> None:
    ranks = spawned.on_ranks(tp_ranks.gpu_sums, torch.cuda.device_count(), str(tmp_path / "meeting"))
    for of_ranks in zip(*ranks, strict=True):
        parts = [of_rank.part for of_rank in of_ranks]
        first = of_ranks[0]
        for of_rank in of_ranks:
            assert torch.equal(of_rank.eager, first.eager)
            assert torch.equal(of_rank.from_graph, first.from_graph)
        if first.is_one_shot:
            wanted = parts[0].float()
            for part in parts[1:]:
                wanted = wanted + part.float()
            assert torch.equal(first.eager, wanted.to(first.eager.dtype))
            assert torch.equal(first.from_graph, first.eager)
        else:
            torch.testing.assert_close(first.eager.double(), sum(parts).double(), atol=0.1, rtol=0.02)
            torch.testing.assert_close(first.from_graph, first.eager, atol=0.1, rtol=0.02)
    if torch.version.hip is None:
        assert [of_rank.is_one_shot for of_rank in ranks[0]] == [True, True, False] * 2


@pytest.mark.parametrize(
    ("sign", "shares_memory"), [(signal.SIGKILL, True), (signal.SIGSTOP, True), (signal.SIGKILL, False)]
)
def test_a_dead_or_stopped_peer_is_an_engine_error(sign: int, shares_memory: bool, tmp_path: Path) -> None:
    meeting = str(tmp_path / "meeting")
    message = spawned.on_ranks(tp_ranks.survivor, 2, meeting, sign, shares_memory, wait_for=[0])[0]
    assert "tensor parallel rank 0 of 2: all_reduce failed" in message


def test_a_peer_that_never_comes_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="rank 0 of 2"):
        tp_ranks.connect(0, 2, str(tmp_path / "meeting"), timeout_s=1.0)


def test_a_group_of_one_does_nothing() -> None:
    tp = TpGroup.single()
    x = torch.ones(3)
    assert tp.all_reduce(x) is x
    assert tp.all_gather_last(x) is x
    assert tp.broadcast_bytes(b"abc") == b"abc"
    assert [tp.agrees(True), tp.agrees(False)] == [True, False]
    tp.barrier()
    tp.close()


@pytest.mark.parametrize(
    ("size", "checkpoint", "part"),
    [
        (3, {"num_heads": 8}, r"8 heads and 8 key-value heads can be split over \[1, 2, 4, 8\] ranks"),
        (16, {"num_heads": 8}, "8 heads"),
        (8, {"num_heads": 24, "num_kv_heads": 6, "hidden_size": 96}, r"6 key-value heads .*\[1, 2, 3, 6, 12, 24\]"),
        (8, {"intermediate_size": 180}, "intermediate size 180"),
    ],
)
def test_tp_that_does_not_divide_the_model_is_refused(
    size: int, checkpoint: dict[str, Any], part: str, tmp_path: Path
) -> None:
    config = ModelConfig.from_directory(tiny_models.make_llama(tmp_path, **checkpoint))
    rank_of_many = TpGroup(0, size, None, None)
    with pytest.raises(ConfigError, match=part) as caught:
        LlamaForCausalLM(config, rank_of_many, dtype=torch.float32, device=tp_ranks.CPU)
    assert caught.value.field == "tp"
    assert caught.value.value == size
