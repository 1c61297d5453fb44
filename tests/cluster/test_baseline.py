"""A kept baseline comes back as it was, and is refused for anything but what it was measured on."""

import json
from pathlib import Path

import pytest
from nfold.cluster.baseline import Baseline, BaselineKey, hash_weights
from nfold.cluster.baseline import keep_baseline as keep
from nfold.cluster.baseline import load_baseline as load
from nfold.cluster.latency import Percentiles
from nfold.cluster.load_result import StepTimePoint
from nfold.cluster.provenance import provenance
from nfold.models.errors import CheckpointError, StateError

SETTINGS: dict[str, str | int | float | bool] = {"dtype": "float32", "max_num_seqs": 64, "prefix_cache": True}
KEY = BaselineKey(model="nfold-sums", accelerator="AMD-Instinct-MI355X-OAM", tp=2, workload="sums")
LATENCY = Percentiles(p50=0.01, p90=0.02, p99=0.04)
BASELINE = Baseline(
    key=KEY,
    weights="ab" * 32,
    engine="native",
    settings=SETTINGS,
    node="node-0",
    num_replicas=4,
    concurrency=64,
    num_in_flight=61.5,
    tokens_per_s=4000.0,
    repeats=[3900.0, 4000.0, 4200.0],
    window_s=10.0,
    ttft_s=LATENCY,
    tpot_s=LATENCY,
    e2e_s=LATENCY,
    step_times=[StepTimePoint(num_tokens=32.0, step_s=0.02, num_steps=100)],
    provenance=provenance(),
)


def test_a_kept_baseline_comes_back_as_it_was(tmp_path: Path) -> None:
    path = keep(BASELINE, tmp_path)
    assert path.parent == tmp_path / "baselines"
    assert load(KEY, tmp_path, weights=BASELINE.weights, settings=SETTINGS) == BASELINE


def test_a_newer_one_replaces_it(tmp_path: Path) -> None:
    keep(BASELINE, tmp_path)
    keep(BASELINE.model_copy(update={"tokens_per_s": 5000.0}), tmp_path)
    assert load(KEY, tmp_path, weights=BASELINE.weights, settings=SETTINGS).tokens_per_s == 5000.0
    assert len(list((tmp_path / "baselines").iterdir())) == 1


def test_the_yardstick_is_per_replica() -> None:
    assert BASELINE.yardstick.tokens_per_s == 1000.0
    assert BASELINE.yardstick.num_in_flight == 61.5
    assert BASELINE.spread == pytest.approx(0.075)


def test_none_kept_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"no baseline is kept for nfold-sums on AMD.*`nfold baseline`"):
        load(KEY, tmp_path, weights="", settings={})


@pytest.mark.parametrize(
    ("weights", "changes", "named"),
    [
        ("cd" * 32, {}, "weights abababababab, now cdcdcdcdcdcd"),
        ("ab" * 32, {"max_num_seqs": 128}, "max_num_seqs 64, now 128"),
        ("ab" * 32, {"graphs": True}, "graphs None, now True"),
    ],
)
def test_another_model_or_setting_is_refused_by_name(
    tmp_path: Path, weights: str, changes: dict[str, int], named: str
) -> None:
    keep(BASELINE, tmp_path)
    with pytest.raises(StateError, match=named):
        load(KEY, tmp_path, weights=weights, settings=SETTINGS | changes)


def test_where_the_weights_lie_and_a_little_memory_are_no_difference(tmp_path: Path) -> None:
    then: dict[str, str | int | float | bool] = {"model_dir": "/a", "device": "cuda:0", "num_kv_blocks": 1000}
    now: dict[str, str | int | float | bool] = {"model_dir": "/b", "device": "cuda:7", "num_kv_blocks": 1050}
    keep(BASELINE.model_copy(update={"settings": SETTINGS | then}), tmp_path)
    load(KEY, tmp_path, weights=BASELINE.weights, settings=SETTINGS | now)
    with pytest.raises(StateError, match="num_kv_blocks 1000, now 500"):
        load(KEY, tmp_path, weights=BASELINE.weights, settings=SETTINGS | now | {"num_kv_blocks": 500})


def test_a_damaged_file_is_named_with_its_field(tmp_path: Path) -> None:
    path = keep(BASELINE, tmp_path)
    data = json.loads(path.read_text())
    data["tokens_per_s"] = "many"
    path.write_text(json.dumps(data))
    with pytest.raises(StateError, match=r"\.json is damaged at tokens_per_s"):
        load(KEY, tmp_path, weights=BASELINE.weights, settings=SETTINGS)


def test_a_key_makes_a_plain_file_name() -> None:
    key = BaselineKey(model="llama", accelerator="a/b c", tp=1, workload="random")
    assert key.file_name == "llama_a-b-c_tp1_random.json"


def test_weights_hash_follows_content_and_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(b"weights")
    first = hash_weights(tmp_path)
    assert hash_weights(tmp_path) == first
    shard.write_bytes(b"weightz")
    second = hash_weights(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert len({first, second, hash_weights(tmp_path)}) == 3


def test_a_large_shard_is_sampled_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfold.cluster.baseline._WHOLE_FILE_BYTES", 1 << 20)
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(bytes(3 << 20))
    first = hash_weights(tmp_path)
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert hash_weights(tmp_path) != first


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        hash_weights(tmp_path)
