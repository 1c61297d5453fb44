import json
import re
import zipfile
from pathlib import Path

import fake_service
import pytest
from nfold.cluster.bench.accounting import baseline_facts
from nfold.cluster.bench.accuracy import final_section, judge, read_answers
from nfold.cluster.bench.host_facts import host_facts
from nfold.cluster.bench.made_sets import sums_set
from nfold.cluster.bench.record import headline
from nfold.cluster.bench.record_store import archive_path, open_record, record_hash
from nfold.cluster.bench.report import write_report
from nfold.cluster.bench.rules import rules_of
from nfold.cluster.bench.samples import SampleSet
from nfold.cluster.bench.show import render_record
from nfold.models.errors import EngineError, StateError
from nfold.models.sums import CHECKPOINT
from rich.console import Console
from run_records import make_record, write_record


def shown(renderable) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_a_record_is_read_as_it_was_written(tmp_path: Path):
    directory = write_record(make_record(), tmp_path / "r")
    with open_record(directory) as (record, place):
        assert record == make_record()
        assert place == directory
    with open_record(archive_path(directory)) as (record, place):
        assert record == make_record()
        assert record_hash(place) == record_hash(directory)


def test_the_archive_of_equal_records_is_equal(tmp_path: Path):
    one, two = (write_record(make_record(), tmp_path / name) for name in "ab")
    assert record_hash(one) == record_hash(two)


@pytest.mark.parametrize("name", ["record.json", "2-nodes/run-1/mlperf_log_detail.txt", "user.conf"])
def test_a_changed_byte_is_refused(tmp_path: Path, name: str):
    directory = write_record(make_record(), tmp_path / "r")
    path = directory / name
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateError, match=f"{name} was changed after the record was made"), open_record(directory):
        pass


def test_a_missing_and_an_added_file_are_refused(tmp_path: Path):
    directory = write_record(make_record(), tmp_path / "r")
    (directory / "more.txt").write_text("x")
    with pytest.raises(StateError, match=r"more.txt was added"), open_record(directory):
        pass
    (directory / "more.txt").unlink()
    (directory / "user.conf").unlink()
    with pytest.raises(StateError, match=r"user.conf is missing"), open_record(directory):
        pass


def test_a_changed_manifest_is_refused(tmp_path: Path):
    directory = write_record(make_record(), tmp_path / "r")
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"hash": "0" * 64}))
    with pytest.raises(StateError, match="its manifest was changed"), open_record(directory):
        pass


def test_a_record_of_an_unknown_version_is_refused(tmp_path: Path):
    directory = write_record(make_record(), tmp_path / "r")
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(StateError, match="of version 99; this nfold reads version 1"), open_record(directory):
        pass


def test_what_is_no_record_is_told(tmp_path: Path):
    (tmp_path / "file.zip").write_text("no archive")
    (tmp_path / "folder").mkdir()
    for name, said in (("file.zip", "no archive"), ("folder", "no run record"), ("gone", "there is no such")):
        with pytest.raises(StateError, match=said), open_record(tmp_path / name):
            pass


def test_an_archive_cannot_write_elsewhere(tmp_path: Path):
    path = tmp_path / "r.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../outside.txt", "x")
    with pytest.raises(StateError), open_record(path):
        pass
    assert not (tmp_path.parent / "outside.txt").exists()


def test_figures_without_passed_accuracy_say_so():
    record = make_record(accuracy=None, no_accuracy="none was asked for", simulated=True, departures=["short run"])
    text = shown(render_record(record))
    for part in ("SIMULATED", "no accuracy run: none was asked for", "not MLPerf-valid: short run"):
        assert part in text
    assert make_record().caveats == []


def test_the_report_is_one_page_with_its_charts(tmp_path: Path):
    directory = write_record(make_record(simulated=True, departures=["short run"]), tmp_path / "r")
    page = write_report(directory, tmp_path / "page")
    text = page.read_text()
    for name in ("scaling", "ledger", "ttft", "tpot", "nodes"):
        assert f'<section id="{name}">' in text
        assert (tmp_path / "page" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert text.count("<svg") == 10
    assert not re.search(r'(src|href)="http', text)
    assert "SIMULATED: no tokens were computed" in text
    assert "not MLPerf-valid: short run" in text
    assert headline(make_record()) in text
    with open_record(directory):
        pass  # a report made within the record does not spoil it


def test_a_kept_baseline_has_its_dot_on_the_scaling_curve(tmp_path: Path):
    both = make_record()
    whole_alone = make_record(points=both.points[1:], baseline=baseline_facts(fake_service.baseline(1000.0)))
    pages = [
        write_report(write_record(record, tmp_path / name), tmp_path / f"{name}-page").read_text()
        for name, record in (("both", both), ("whole-alone", whole_alone))
    ]
    assert ["baseline (kept)" in page for page in pages] == [False, True]
    assert all("95.0%" in page for page in pages)


def test_a_report_within_the_record_is_no_part_of_it(tmp_path: Path):
    directory = write_record(make_record(), tmp_path / "r")
    assert write_report(directory) == directory / "report" / "index.html"
    with open_record(directory):
        pass


def answers_file(directory: Path, answers: dict[int, bytes]) -> None:
    entries = [{"seq_id": row, "qsl_idx": row, "data": data.hex()} for row, data in answers.items()]
    (directory / "mlperf_log_accuracy.json").write_text(json.dumps(entries))


def test_exact_answers_are_judged(tmp_path: Path):
    samples, gate = sums_set(CHECKPOINT, 4), rules_of("sums").gate
    assert gate is not None
    answers_file(tmp_path, {row: row.to_bytes(4, "little") for row in range(4)})
    answers = read_answers(tmp_path)
    assert answers == {0: [0], 1: [1], 2: [2], 3: [3]}

    def decode(ids):
        return f"The answer is {samples.references[ids[0]] if ids[0] < 3 else 'x'}."

    judged = judge(gate, samples, answers, decode, "accuracy")
    assert judged.scores == {"exact": 0.75}
    assert judged.misses == ["exact 0.7500 is below 0.9900"]


def test_an_unanswered_sample_fails_the_gate():
    samples, gate = sums_set(CHECKPOINT, 2), rules_of("sums").gate
    assert gate is not None
    judged = judge(gate, samples, {0: [1]}, lambda ids: f"The answer is {samples.references[0]}.", "")
    assert "1 of 2 samples were not answered" in judged.misses


def gpt_oss_set(subsets: list[str], references: list[str]) -> SampleSet:
    from dataclasses import replace

    return replace(sums_set(CHECKPOINT, len(subsets)), subsets=subsets, references=references)


def test_gpt_oss_answers_are_judged_by_their_set():
    samples = gpt_oss_set(["aime25", "aime25", "gpqa_diamond", "gpqa_diamond"], ["42", "7", "B", "C"])
    texts = [
        r"so \boxed{41}, no, \boxed{ 42 }",
        "Answer: 8",
        "<|channel|>analysis<|message|>A?<|channel|>final<|message|>**B**<|return|>",
        "the answer could be C",
    ]
    gate = rules_of("gpt-oss-120b").gate
    assert gate is not None
    judged = judge(gate, samples, {row: [row] for row in range(4)}, lambda ids: texts[ids[0]], "")
    assert judged.scores["aime"] == 50.0
    assert judged.scores["gpqa"] == 50.0
    assert final_section(texts[2]) == "**B**"


def test_programs_are_not_judged_so_the_gate_is_not_passed():
    samples = gpt_oss_set(["aime25", "livecodebench_v6"], ["42", "x"])
    gate = rules_of("gpt-oss-120b").gate
    assert gate is not None
    judged = judge(gate, samples, {0: [0], 1: [1]}, lambda ids: "Answer: 42", "")
    assert judged.scores == {"aime": 100.0}
    assert judged.misses == [
        "no exact_match",
        "nfold does not judge livecodebench; MLCommons' evaluation takes the accuracy log",
    ]


def test_rouge_and_the_token_band_are_judged():
    samples = gpt_oss_set(["", ""], ["the cat sat on the mat", "dogs bark"])
    gate = rules_of("llama2-70b").gate
    assert gate is not None
    texts = ["the cat sat on the mat", "dogs bark"]
    judged = judge(gate, samples, {0: [0] * 290, 1: [1] * 300}, lambda ids: texts[ids[0]], "")
    assert judged.scores == {"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0, "tokens_per_sample": 295.0}
    assert judged.passed
    assert not judge(gate, samples, {0: [0], 1: [1]}, lambda ids: texts[ids[0]], "").passed


def test_a_damaged_accuracy_log_is_told(tmp_path: Path):
    (tmp_path / "mlperf_log_accuracy.json").write_text('[{"qsl_idx": 0}]')
    with pytest.raises(EngineError, match="cannot be read"):
        read_answers(tmp_path)


def test_a_machine_is_described_from_its_files(tmp_path: Path):
    card = tmp_path / "sys/class/drm/card1/device"
    (card / "fw_version").mkdir(parents=True)
    (card / "vendor").write_text("0x1002\n")
    (card / "product_name").write_text("AMD Instinct MI355X\n")
    (card / "pp_dpm_sclk").write_text("0: 500Mhz\n1: 2400Mhz *\n")
    (card / "fw_version/smc_fw_version").write_text("0x00555300\n")
    (tmp_path / "sys/module/amdgpu").mkdir(parents=True)
    (tmp_path / "sys/module/amdgpu/version").write_text("6.14.4\n")
    (tmp_path / "opt/rocm/.info").mkdir(parents=True)
    (tmp_path / "opt/rocm/.info/version").write_text("7.0.0-38\n")
    found = host_facts(tmp_path)
    assert found.accelerators == {"AMD Instinct MI355X": 1}
    assert (found.driver, found.runtime) == ("6.14.4", "7.0.0-38")
    assert found.firmware == {"smc": "0x00555300"}
    assert found.clocks_mhz == {"core": 2400}


def test_a_machine_that_tells_nothing_is_described_all_the_same(tmp_path: Path):
    found = host_facts(tmp_path)
    assert (found.accelerators, found.driver, found.memory_bytes) == ({}, None, 0)
