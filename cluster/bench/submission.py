"""`nfold submission`: MLCommons' directory tree out of run records, and what is missing in it.

    OUT/<division>/<submitter>/
        systems/<system>.json
        src/README.md
        documentation/calibration.md
        results/<system>/<benchmark>/<scenario>/
            measurements.json  user.conf  README.md
            performance/run_1/mlperf_log_{summary,detail}.txt
            accuracy/mlperf_log_{summary,detail}.txt  mlperf_log_accuracy.json  accuracy.txt

Paths and fields are those of MLPerf Inference's submission checker (`submission_checker/constants.py`) for v6.0,
which v6.1 kept.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ...models.errors import ConfigError, StateError
from .loadgen_log import ACCURACY, DETAIL, SUMMARY
from .record import AccuracyFacts, RunRecord
from .record_store import open_record
from .rounds import round_of
from .rules import rules_of
from .scenarios import Scenario
from .system_description import UNKNOWN, system_description

DIVISIONS = ("closed", "open", "network")
MAX_ACCURACY_LOG_BYTES = 10 * 1024
COMPLIANCE = {"llama2-70b": ("TEST06",), "gpt-oss-120b": ("TEST07", "TEST09"), "wan-2.2-t2v-a14b": ("TEST04",)}


def write_submission(
    records: Sequence[Path], out: Path, *, submitter: str, division: str = "closed", system: str | None = None
) -> list[str]:
    """
    Returns:
        What a submission still lacks, as phrases.

    Raises:
        ConfigError: no such division, or a name that is no folder.
        StateError: `out` exists, a record cannot be read, or two are of one benchmark and scenario.
    """
    if division not in DIVISIONS:
        raise ConfigError("division", division, f"must be one of {', '.join(DIVISIONS)}")
    for field, name in (("submitter", submitter), ("system", system)):
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ConfigError(field, name, "letters, digits, dots, dashes and underscores, as it names a folder")
    if out.exists():
        raise StateError(f"{out} exists; a submission needs a folder of its own")
    missing: list[str] = []
    home = out / division / submitter
    done: set[tuple[str, str, str]] = set()
    for path in records:
        with open_record(path) as (record, directory):
            name = system or _system_name(record)
            key = name, record.workload.name, record.workload.scenario.value
            if key in done:
                raise StateError(f"two records are of {' '.join(key)}; a submission takes one")
            done.add(key)
            missing += _write_result(record, directory, home, name, division, submitter)
    _write(home / "src/README.md", "The load generator, router and engines are those of nfold.\n")
    _write(home / "documentation/calibration.md", "TODO: how the weights were quantised and calibrated.\n")
    missing.append("documentation/calibration.md: how the weights were quantised")
    if division == "network":
        missing.append(
            "network: a LoadGen that reaches the service over a network; nfold's is a part of the system"
        )
    return missing + _missing_scenarios(done) + _missing_compliance(done)


def _write_result(
    record: RunRecord, directory: Path, home: Path, system: str, division: str, submitter: str
) -> list[str]:
    where = f"{record.workload.name}/{record.workload.scenario}"
    place = home / "results" / system / record.workload.name / record.workload.scenario.value
    run = record.whole.typical
    _copy(directory / run.logs, place / "performance/run_1", (SUMMARY, DETAIL))
    shutil.copyfile(directory / "user.conf", place / "user.conf")
    _write(place / "README.md", _readme(record))
    measurements = {
        "input_data_types": "int32",
        "retraining": "no",
        "starting_weights_filename": record.model.weights_name or UNKNOWN,
        "weight_data_types": str(record.model.settings.get("dtype", UNKNOWN)),
        "weight_transformations": str(record.model.settings.get("quantization", "none")),
    }
    _write(place / "measurements.json", json.dumps(measurements, indent=2) + "\n")
    description, open_fields = system_description(record, system, division, submitter)
    _write(home / "systems" / f"{system}.json", json.dumps(description, indent=2) + "\n")
    missing = [f"systems/{system}.json: {field}" for field in open_fields]
    missing += [f"{where}/measurements.json: {name}" for name, value in measurements.items() if value == UNKNOWN]
    missing += [f"{where}: a result that MLCommons would take ({caveat})" for caveat in record.caveats]
    missing += _missing_round(record, where)
    if not (place / "user.conf").read_text().strip():
        missing.append(f"{where}/user.conf: it is empty, which the checker refuses")
    if record.accuracy is None:
        missing.append(f"{where}/accuracy: an accuracy run")
    else:
        _write_accuracy(record.accuracy, directory, place / "accuracy")
    return missing


def _write_accuracy(accuracy: AccuracyFacts, directory: Path, place: Path) -> None:
    """The accuracy log is cut to what the checker admits, and its whole hash stands in accuracy.txt, as MLCommons'
    own truncate_accuracy_log.py does."""
    _copy(directory / accuracy.logs, place, (SUMMARY, DETAIL))
    whole = (directory / accuracy.logs / ACCURACY).read_bytes()
    half = MAX_ACCURACY_LOG_BYTES // 2 - 16
    cut = whole if len(whole) <= MAX_ACCURACY_LOG_BYTES else whole[:half] + b"\n...\n" + whole[-half:]
    (place / ACCURACY).write_bytes(cut)
    scores = ", ".join(f"'{name}': {score:.4f}" for name, score in accuracy.scores.items())
    _write(place / "accuracy.txt", f"{{{scores}}}\nhash={hashlib.sha256(whole).hexdigest()}\n")


def _missing_round(record: RunRecord, where: str) -> list[str]:
    found, version = round_of(record.loadgen.settings), record.loadgen.version
    if found is None:
        return [f"{where}: the seeds of a round; those of LoadGen {version} are of none that nfold knows"]
    if record.workload.name in found.gone:
        return [f"{where}: a benchmark of {found.name}, whose seeds LoadGen {version} has"]
    return []


def _missing_scenarios(done: set[tuple[str, str, str]]) -> list[str]:
    """What the rules want of each benchmark beside what is there."""
    found: list[str] = []
    for system, name in sorted({key[:2] for key in done}):
        rules = rules_of(name)
        there = {key[2] for key in done if key[:2] == (system, name)}
        if not rules.official:
            found.append(f"{name}: it is no benchmark of MLCommons, so the checker refuses it")
        elif rules.needs_text_to_video:
            wanted = (Scenario.OFFLINE, Scenario.SINGLE_STREAM)
            found += [f"{name}: {each}, which is required" for each in wanted if each not in there]
        else:
            if Scenario.OFFLINE not in there:
                found.append(f"{name}: Offline, which is required")
            if not there & {Scenario.SERVER.value, Scenario.INTERACTIVE.value}:
                found.append(f"{name}: Server or Interactive, one of which is required")
    return found


def _missing_compliance(done: set[tuple[str, str, str]]) -> list[str]:
    return [
        f"{name}/{scenario}: compliance run {test}"
        for _, name, scenario in sorted(done)
        for benchmark, tests in COMPLIANCE.items()
        if name.startswith(benchmark)
        for test in tests
    ]


def _system_name(record: RunRecord) -> str:
    kind = re.sub(r"[^A-Za-z0-9._-]+", "-", record.model.accelerator)
    return f"{record.whole.num_accelerators}x{kind}"


def _readme(record: RunRecord) -> str:
    lines = [f"# {record.workload.name} {record.workload.scenario}", "", "Measured with `nfold bench`:", ""]
    lines += [f"* {caveat}" for caveat in record.caveats]
    lines += [f"* {record.workload.source}", f"* LoadGen {record.loadgen.version}", ""]
    return "\n".join(lines)


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, target / name)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
