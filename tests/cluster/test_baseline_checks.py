"""What is called a baseline: not the load generator's limit, not repeats that differ, and of what was served."""

import numpy as np
import pytest
from fake_service import baseline
from nfold.cluster.arrivals import ClosedLoop
from nfold.cluster.baseline import hash_profile
from nfold.cluster.load import LoadSettings, run_load
from nfold.cluster.measure import check_baseline, measuring_router
from nfold.cluster.roofline import ReplicaSize, empty_replicas
from nfold.cluster.workloads import Workload
from nfold.models.engine.protocol import SamplingParams
from nfold.models.errors import StateError

NOISY = baseline(100.0).model_copy(update={"repeats": [90.0, 100.0, 115.0]})


def test_repeats_that_differ_are_refused_with_their_figures() -> None:
    check_baseline(NOISY, None, 0.1)
    check_baseline(NOISY, 0.3, 0.1)
    with pytest.raises(StateError, match=r"90, 100, 115 tokens/s, which differ by 25\.0%, more than 10\.0%"):
        check_baseline(NOISY, 0.1, 0.1)


def test_the_load_generator_must_not_be_the_limit() -> None:
    limited = baseline(100.0).model_copy(update={"roofline_tokens_per_s": 120.0})
    with pytest.raises(StateError, match=r"100 tokens/s were measured.* no more than 120 against replicas that"):
        check_baseline(limited, 0.1, 0.1)
    fast = limited.model_copy(update={"roofline_tokens_per_s": 1000.0})
    check_baseline(fast, 0.1, 0.1)
    with pytest.raises(StateError, match="took 95% of a core, more than 90%"):
        check_baseline(fast, 0.1, 0.95)


def test_replicas_that_compute_nothing_answer_everything() -> None:
    prompts = [np.arange(1, 12, dtype=np.int32)] * 8
    workload = Workload("w", prompts, [SamplingParams(20, ignore_eos=True)] * 8)
    settings = LoadSettings(warmup_s=0.0, window_s=60.0, max_requests=400)
    sizes = [ReplicaSize("m", max_num_seqs=16, max_model_len=256)] * 2
    with empty_replicas(sizes) as addresses, measuring_router(addresses, None) as router:
        assert [(each.model, each.max_num_seqs, each.engine) for each in addresses] == [("m", 16, "simulated")] * 2
        result = run_load(router, "m", workload, ClosedLoop(32), settings)
    assert result.num_failed == 0
    assert result.num_output_tokens > 0


def test_a_simulated_baseline_hashes_its_profile() -> None:
    one, other = hash_profile("MI300X--llama-2-70b"), hash_profile("MI355X--llama-2-70b")
    assert len(one) == 64
    assert one != other
    assert hash_profile("MI300X--llama-2-70b") == one
