"""What MLCommons' submission checker looks at in a tree of v6.0 or v6.1, by its rules: for submissions of language
models to the data centre, without power."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SAMPLES = {"llama2-70b-99": 24_576, "llama2-70b-99.9": 24_576, "gpt-oss-120b": 6_396}
ACCURACY_SAMPLES = {**SAMPLES, "gpt-oss-120b": 4_395}
LIMITS_MS = {
    ("llama2-70b", "Server"): (2000, 200),
    ("llama2-70b", "Interactive"): (450, 40),
    ("gpt-oss-120b", "Server"): (3000, 80),
    ("gpt-oss-120b", "Interactive"): (2000, 15),
}
TESTS = {"llama2-70b": ("TEST06",), "gpt-oss-120b": ("TEST07", "TEST09")}
LEAST_MS = 600_000
ACCURACY_LOG_BYTES = 10 * 1024
MEASUREMENTS = (
    *("input_data_types", "retraining", "starting_weights_filename", "weight_data_types"),
    "weight_transformations",
)
AVAILABILITIES = ("available", "preview", "rdi")
MEANINGFUL = (
    *("division", "submitter", "system_type", "status", "system_name", "number_of_nodes"),
    *("host_processor_model_name", "host_processors_per_node", "host_processor_core_count"),
    *("host_memory_capacity", "host_memory_configuration", "host_storage_capacity", "host_storage_type"),
    *("host_networking", "host_network_card_count", "host_networking_topology", "accelerators_per_node"),
    *("accelerator_model_name", "accelerator_memory_capacity", "accelerator_host_interconnect"),
    *("accelerator_memory_configuration", "accelerator_interconnect", "cooling", "framework"),
    *("operating_system", "other_software_stack"),
)
MAY_BE_EMPTY = (
    *("host_processor_frequency", "host_processor_caches", "host_processor_interconnect"),
    *("accelerator_frequency", "accelerator_interconnect_topology", "accelerator_on-chip_memories"),
    *("hw_notes", "sw_notes", "system_type_detail"),
)


def problems(tree: Path, seeds: Mapping[str, int]) -> list[str]:
    """What the checker would say, as phrases that begin with the place; empty for a tree that it takes.

    Args:
        seeds: of the round.
    """
    return [found for home in sorted(tree.glob("*/*")) for found in _of_submitter(home, seeds)]


def _of_submitter(home: Path, seeds: Mapping[str, int]) -> Iterator[str]:
    division, submitter = home.parts[-2:]
    if division not in ("closed", "open", "network"):
        yield f"{division}: no division"
    if not (home / "src").is_dir():
        yield "src: is missing"
    for system in sorted((home / "results").iterdir()):
        path = home / "systems" / f"{system.name}.json"
        description = json.loads(path.read_text()) if path.is_file() else None
        if description is None:
            yield f"systems/{system.name}.json: is missing"
        else:
            yield from _of_system(description, division, submitter, system.name)
        for benchmark in sorted(system.iterdir()):
            there = {scenario.name for scenario in benchmark.iterdir()}
            if division != "open":
                if "Offline" not in there:
                    yield f"{benchmark.name}: lacks Offline"
                if not there & {"Server", "Interactive"}:
                    yield f"{benchmark.name}: lacks Server or Interactive"
            for scenario in sorted(benchmark.iterdir()):
                yield from _of_result(scenario, division, seeds)


def _of_system(description: Mapping[str, Any], division: str, submitter: str, system: str) -> Iterator[str]:
    where = f"systems/{system}.json"
    for name in (*MEANINGFUL, *MAY_BE_EMPTY):
        if name not in description:
            yield f"{where}: {name} is missing"
        elif name in MEANINGFUL and not description[name]:
            yield f"{where}: {name} is empty"
    if description.get("status") and description["status"].lower() not in AVAILABILITIES:
        yield f"{where}: status is none"
    if description.get("system_type") not in ("datacenter", "edge", "datacenter,edge", "edge,datacenter"):
        yield f"{where}: system_type is none"
    for name, folder in (("submitter", submitter), ("division", division)):
        if str(description.get(name)).lower() != folder.lower():
            yield f"{where}: {name} is not the folder's"
    if (description.get("is_network", "false") == "true") != (division == "network") and division != "open":
        yield f"{where}: is_network is not the division's"


def _of_result(place: Path, division: str, seeds: Mapping[str, int]) -> Iterator[str]:
    benchmark, scenario = place.parts[-2:]
    where = f"{benchmark}/{scenario}"
    if benchmark not in SAMPLES:
        yield f"{where}: no benchmark"
        return
    for name in ("user.conf", "README.md"):
        if not (place / name).is_file() or (place / name).stat().st_size == 0:
            yield f"{where}/{name}: is missing or empty"
    path = place / "measurements.json"
    measurements = json.loads(path.read_text()) if path.is_file() else {}
    yield from (f"{where}/measurements.json: {name}" for name in MEASUREMENTS if not measurements.get(name))
    yield from (f"{where}: {found}" for found in _performance(place, benchmark, scenario, division, seeds))
    yield from (f"{where}: {found}" for found in _accuracy(place / "accuracy", benchmark, division))
    if division != "open":
        for test in next((tests for name, tests in TESTS.items() if benchmark.startswith(name)), ()):
            if not (place / test).is_dir():
                yield f"{where}: {test} is missing"


def _performance(
    place: Path, benchmark: str, scenario: str, division: str, seeds: Mapping[str, int]
) -> Iterator[str]:
    path = place / "performance/run_1/mlperf_log_detail.txt"
    if not path.is_file() or not path.with_name("mlperf_log_summary.txt").is_file():
        yield "no performance log"
        return
    log, errors = _log(path)
    if errors:
        yield f"LoadGen's errors: {errors}"
    if log["effective_scenario"] != scenario and (log["effective_scenario"], scenario) != ("Server", "Interactive"):
        yield f"the log is of {log['effective_scenario']}"
    if log["effective_performance_sample_count"] < SAMPLES[benchmark]:
        yield "too few performance samples"
    yield from (f"{name} is of another round" for name, seed in seeds.items() if log[f"effective_{name}"] != seed)
    if log["effective_min_duration_ms"] < LEAST_MS:
        yield "too short"
    if log["effective_scenario"] == "Offline" and log["effective_samples_per_query"] < SAMPLES[benchmark]:
        yield "too few samples per query"
    if log["effective_scenario"] == "Server":
        if log.get("early_stopping_met") is not True:
            yield "early stopping is not met"
        model = "llama2-70b" if benchmark.startswith("llama2-70b") else benchmark
        keys = "result_first_token_99.00_percentile_latency_ns", "result_time_per_output_token_99.00_percentile_ns"
        for key, limit_ms in zip(keys, LIMITS_MS[model, scenario], strict=True):
            if log[key] >= limit_ms * 1e6:
                yield f"{key} is above {limit_ms} ms"
    if not log["requested_use_token_latencies"]:
        yield "token latencies are not used"
    if division == "network" and "Network SUT" not in log["sut_name"]:
        yield "the SUT is none of a network"


def _accuracy(place: Path, benchmark: str, division: str) -> Iterator[str]:
    paths = [place / name for name in ("mlperf_log_detail.txt", "accuracy.txt", "mlperf_log_accuracy.json")]
    if not all(path.is_file() for path in paths):
        yield "no accuracy run"
        return
    log, errors = _log(paths[0])
    if errors:
        yield f"LoadGen's errors in accuracy: {errors}"
    if log.get("effective_accuracy_sample_count", log["qsl_reported_total_count"]) != ACCURACY_SAMPLES[benchmark]:
        yield "accuracy does not cover the set"
    if paths[2].stat().st_size > ACCURACY_LOG_BYTES:
        yield "the accuracy log is not cut"
    text = paths[1].read_text()
    if not re.search(r"^hash=\w+$", text, re.MULTILINE):
        yield "no hash in accuracy.txt"
    if division != "open":
        for name, (least, most) in _targets(benchmark).items():
            found = re.search(rf"'{name}':\s+'?([\d.]+)", text)
            if found is None or not least <= float(found[1]) <= most:
                yield f"accuracy: {name}"


def _targets(benchmark: str) -> dict[str, tuple[float, float]]:
    if benchmark == "gpt-oss-120b":
        return {"exact_match": (0.99 * 83.13, 100.0)}
    share = 0.999 if benchmark.endswith("99.9") else 0.99
    rouge = {"rouge1": 44.4312, "rouge2": 22.0352, "rougeL": 28.6162}
    return {name: (share * score, 100.0) for name, score in rouge.items()} | {
        "tokens_per_sample": (0.9 * 294.45, 1.1 * 294.45)
    }


def _log(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The first value of each key, as the checker takes it, and what is marked as an error."""
    values: dict[str, Any] = {}
    errors: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith(":::MLLOG"):
            entry = json.loads(line.removeprefix(":::MLLOG"))
            values.setdefault(entry["key"], entry["value"])
            if entry["metadata"]["is_error"]:
                errors.append(str(entry["value"]))
    return values, errors
