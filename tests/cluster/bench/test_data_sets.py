import gzip
import json
import os
import pickle
from pathlib import Path

import pandas as pd
import pytest
from nfold.cluster.bench.made_sets import is_right_sum, read_trace, sums_set, synthetic_set
from nfold.cluster.bench.official_sets import read_gpt_oss, read_openorca, read_vbench_prompts
from nfold.cluster.bench.workload import ServedModel, make_workload
from nfold.models.engine.simulated.loops import end_of
from nfold.models.errors import ConfigError, StateError
from nfold.models.sums import CHECKPOINT

SIMULATED = ServedModel(directory=None, simulated=True, vocab_size=127, max_model_len=2048)
EMBEDDED = ServedModel(directory=CHECKPOINT, simulated=False, vocab_size=128, max_model_len=256)


def openorca_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {"tok_input": [[1, 2, 3], [4, 5]], "output": ["yes", "no"], "question": ["q", "r"], "n": [1, 2]}
    )


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("compress", [False, True])
def test_openorca_pickles_are_read(tmp_path: Path, protocol: int, compress: bool):
    path = tmp_path / "open_orca.pkl"
    data = pickle.dumps(openorca_frame(), protocol=protocol)
    path.write_bytes(gzip.compress(data) if compress else data)
    samples = read_openorca(path)
    assert len(samples) == 2
    assert samples.references == ["yes", "no"]
    assert not samples.synthetic
    assert [samples.prompt(row).tolist() for row in range(2)] == [[1, 2, 3], [4, 5]]
    assert samples.max_tokens.tolist() == [1024, 1024]


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "went-off"))
    path = tmp_path / "open_orca.pkl"
    path.write_bytes(pickle.dumps({"tok_input": Bomb()}))
    with pytest.raises(ConfigError, match=r"posix.mkdir, which is no part of a data frame"):
        read_openorca(path)
    assert not (tmp_path / "went-off").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a parquet file or a pickled data frame is needed"),
        (b"not a pickle at all", "a parquet file or a pickled data frame is needed"),
        (pickle.dumps([1, 2]), "a data frame is needed; it holds a list"),
        (pickle.dumps(openorca_frame().drop(columns="tok_input")), "a column tok_input or input_token_ids"),
        (pickle.dumps(openorca_frame().head(0)), "it has no rows"),
        (pickle.dumps(openorca_frame().assign(tok_input=[[1], []])), r"row 1: got '\[\]'; token ids"),
        (b"PAR1 and then nothing", "a parquet file or a pickled data frame is needed"),
    ],
)
def test_files_of_the_wrong_form_are_told(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_openorca(path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no such file"):
        read_openorca(tmp_path / "nothing")


def test_gpt_oss_parquet_is_read(tmp_path: Path):
    path = tmp_path / "set.parquet"
    frame = pd.DataFrame(
        {"tok_input": [[1, 2], [3]], "ground_truth": ["42", "B"], "dataset": ["AIME25", "gpqa_diamond"]}
    )
    frame.to_parquet(path)
    performance, accuracy = read_gpt_oss(path, accuracy=False), read_gpt_oss(path, accuracy=True)
    assert (performance.temperature, performance.max_tokens[0], len(performance)) == (1.0, 10_240, 2)
    assert (list(accuracy.subsets), list(accuracy.references)) == (["aime25", "gpqa_diamond"], ["42", "B"])
    assert accuracy.max_tokens[0] == 32_768


def test_vbench_prompts_are_lines(tmp_path: Path):
    path = tmp_path / "vbench.txt"
    path.write_text("a dog\n\n a cat \n")
    assert read_vbench_prompts(path) == ["a dog", "a cat"]
    path.write_text("\n")
    with pytest.raises(ConfigError, match="no prompts"):
        read_vbench_prompts(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="one prompt per line"):
        read_vbench_prompts(path)


def test_synthetic_sets_have_the_lengths_and_the_name():
    samples = synthetic_set("openorca", 2000, 127, 2048, simulated=True)
    assert samples.name == "synthetic-openorca"
    assert samples.synthetic
    assert samples.answer_lens is not None
    assert samples.answer_lens.mean() == pytest.approx(283, rel=0.02)
    assert samples.mean_prompt_tokens == pytest.approx(294, rel=0.02)
    assert [end_of(seed) for seed in samples.seeds] == (samples.prompt_lens + samples.answer_lens).tolist()
    assert (samples.prompt_lens + samples.max_tokens <= 2048).all()


def test_real_engines_are_told_the_lengths_of_synthetic_answers():
    samples = synthetic_set("openorca", 50, 1000, 2048, simulated=False)
    assert samples.ignore_eos
    assert samples.answer_lens is not None
    assert (samples.max_tokens == samples.answer_lens).all()


def test_the_digest_tells_other_samples():
    one, same, other = (synthetic_set("openorca", 20, 127, 2048, simulated=True, seed=seed) for seed in (0, 0, 1))
    assert one.digest == same.digest != other.digest


def test_sums_have_right_answers():
    samples = sums_set(CHECKPOINT, 3)
    assert len(samples) == 3
    assert is_right_sum(f"The answer is {samples.references[0]}.", samples.references[0])
    assert not is_right_sum(f"The answer is 1{samples.references[0]}.", samples.references[0])


def test_official_workloads_take_synthetic_samples_without_a_file():
    found = make_workload("llama2-70b", SIMULATED, num_samples=64)
    assert found.performance.synthetic
    assert found.accuracy is None
    assert "compute no tokens" in found.why_no_accuracy
    assert found.rules.name == "llama2-70b-99.9"


def test_an_official_file_gives_accuracy_too(tmp_path: Path):
    path = tmp_path / "open_orca.pkl"
    path.write_bytes(pickle.dumps(openorca_frame()))
    found = make_workload("llama2-70b", EMBEDDED, data=path)
    assert found.accuracy is found.performance


def test_a_chat_trace_is_read(tmp_path: Path):
    path = tmp_path / "chats.jsonl"
    chat = {"messages": [{"role": "user", "content": "1+2="}], "max_tokens": 20}
    path.write_text(json.dumps(chat) + "\n\n" + json.dumps(chat) + "\n")
    samples = read_trace(path, CHECKPOINT, 256)
    assert (len(samples), samples.max_tokens.tolist(), samples.name) == (2, [20, 20], "trace-chats")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("hello", r"chats.jsonl, line 1: got 'hello'; a JSON object"),
        ("[1]", "a JSON object"),
        ('{"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}', "max_tokens: got 0"),
        ('{"messages": [{"role": "user", "content": "a"}], "max_tokens": 9999}', "fit into the model's 256 tokens"),
        ("", "no requests"),
    ],
)
def test_a_wrong_chat_trace_is_told(tmp_path: Path, line: str, said: str):
    path = tmp_path / "chats.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=said):
        read_trace(path, CHECKPOINT, 256)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ("llama3", ConfigError, "known are sums, llama2-70b"),
        ("random-4000-10", ConfigError, "must fit into the model's 2048 tokens"),
        ("trace", ConfigError, "needs a file of chats"),
        ("sums", StateError, "a simulated one has none"),
        ("wan-2.2-t2v", StateError, "asks for videos"),
    ],
)
def test_workloads_that_cannot_be_run_are_refused(asked: str, error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        make_workload(asked, SIMULATED)


def test_a_workload_without_samples_is_refused():
    with pytest.raises(ConfigError, match="has no samples"):
        make_workload("llama2-70b", SIMULATED, num_samples=0)
