"""LoadGen's settings for one run: its own configuration first, then user.conf, then what the run was asked for.

mlperf.conf is compiled into the wheel (`FromConfig` with type 0 reads it), so no figure of it is copied here. What
departs from it is kept as reasons why MLCommons would not take the result.
"""

from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import mlperf_loadgen

from ...models.errors import ConfigError
from .rules import Rules
from .scenarios import Scenario
from .user_conf import KEYS, UserConf

MS_NS = 1_000_000
_COMPILED_IN = 0
# What submitters may set: a rate, an expected latency, and more of what there is a least of.
_FREE = ("target_qps", "target_latency")
_MAY_GROW = ("min_duration", "min_query_count")

Value = int | float | bool | str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the run was asked for beyond LoadGen's configuration; None leaves that.

    Attributes:
        min_duration_s: how long it lasts at least.
        sample_count: performance samples.
        max_queries: of a run in which only a certain number counts.
    """

    target_qps: float | None = None
    expected_latency_s: float | None = None
    min_duration_s: float | None = None
    sample_count: int | None = None
    min_queries: int | None = None
    max_queries: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Of one LoadGen run.

    Attributes:
        key: LoadGen's model key.
        values: fields of TestSettings as effective.
        departures: what keeps MLCommons from taking the result, as phrases.
    """

    scenario: Scenario
    key: str
    accuracy: bool
    values: dict[str, Value]
    departures: tuple[str, ...] = field(default=())

    @property
    def target_qps(self) -> float:
        name = "server_target_qps" if self.scenario.is_server else "offline_expected_qps"
        return float(self.values[name])

    @property
    def min_duration_s(self) -> float:
        return float(self.values["min_duration_ms"]) / 1e3

    @property
    def counts_tokens(self) -> bool:
        return bool(self.values["use_token_latencies"])

    def with_target(self, qps: float) -> "RunSettings":
        """The same at another rate."""
        return replace(self, values=self.values | _rate(self.scenario, qps))

    def test_settings(self) -> Any:
        """A fresh TestSettings."""
        found = _from_wheel(self.key, self.scenario)
        modes = mlperf_loadgen.TestMode
        found.mode = modes.AccuracyOnly if self.accuracy else modes.PerformanceOnly
        for name, value in self.values.items():
            setattr(found, name, value)
        return found


def loadgen_version() -> str:
    """Of the installed distribution."""
    return version("mlcommons-loadgen")


def run_settings(
    rules: Rules,
    scenario: Scenario,
    num_samples: int,
    user_conf: UserConf = UserConf(),  # noqa: B008
    asked: Asked = Asked(),
    *,
    accuracy: bool = False,
) -> RunSettings:
    """
    Args:
        num_samples: of the data set.

    Raises:
        ConfigError: the workload lacks the scenario, or there are no samples.
    """
    key = rules.key_of(scenario)
    if num_samples < 1:
        raise ConfigError(
            "samples", num_samples, f"the workload {rules.name} has no samples; at least one is needed"
        )
    wheel = _values(_from_wheel(key, scenario))
    values, departures = dict(wheel), []
    if not rules.official:
        departures.append(f"{rules.name} is no workload of MLCommons")
        values |= {
            "use_token_latencies": True,
            # Whole passes over the samples, where many are answered at once; one by one they would take hours.
            "sample_concatenate_permutation": scenario is not Scenario.SINGLE_STREAM,
            "server_target_latency_ns": 0,
        }
        for name, limit_ms in zip(
            ("ttft_latency", "tpot_latency"), rules.limits_ms.get(scenario, ()), strict=False
        ):
            values[name] = limit_ms * MS_NS
    official_count = int(wheel["performance_sample_count_override"])
    if num_samples < official_count:
        departures.append(f"{num_samples} samples instead of {official_count}")
    values["performance_sample_count_override"] = min(official_count or num_samples, num_samples)
    if official_count and int(values["min_query_count"]) > num_samples:
        values["min_query_count"] = num_samples
    departures += _take_user_conf(values, user_conf.settings(key, scenario.loadgen), scenario)
    departures += _take_asked(values, asked, scenario)
    return RunSettings(scenario=scenario, key=key, accuracy=accuracy, values=values, departures=tuple(departures))


def _take_user_conf(values: dict[str, Value], lines: dict[str, float], scenario: Scenario) -> list[str]:
    found: list[str] = []
    for key, value in lines.items():
        if key == "target_qps":
            values |= _rate(scenario, value)
        elif key == "target_latency":
            values["single_stream_expected_latency_ns"] = int(value * MS_NS)
        else:
            name, unit = KEYS[key]
            if not (key in _MAY_GROW and value * unit >= float(values[name])):
                found.append(f"user.conf sets {key} to {value:g}, LoadGen's configuration has {values[name]}")
            values[name] = int(value * unit)
    return found


def _take_asked(values: dict[str, Value], asked: Asked, scenario: Scenario) -> list[str]:
    found: list[str] = []
    if asked.target_qps is not None:
        values |= _rate(scenario, asked.target_qps)
    if asked.expected_latency_s is not None:
        values["single_stream_expected_latency_ns"] = int(asked.expected_latency_s * 1e9)
    if asked.min_duration_s is not None:
        wanted_ms = round(asked.min_duration_s * 1e3)
        if wanted_ms < int(values["min_duration_ms"]):
            found.append(
                f"short run: {asked.min_duration_s:g} s instead of {int(values['min_duration_ms']) / 1e3:g} s"
            )
        values["min_duration_ms"] = wanted_ms
    for name, wanted in (
        ("performance_sample_count_override", asked.sample_count),
        ("min_query_count", asked.min_queries),
        ("max_query_count", asked.max_queries),
    ):
        if wanted is not None:
            if name != "max_query_count" and wanted < int(values[name]):
                found.append(f"{name} {wanted} instead of {values[name]}")
            values[name] = wanted
    return found


def _rate(scenario: Scenario, qps: float) -> dict[str, Value]:
    return {"server_target_qps" if scenario.is_server else "offline_expected_qps": float(qps)}


def _from_wheel(key: str, scenario: Scenario) -> Any:
    settings = mlperf_loadgen.TestSettings()
    settings.FromConfig("", key, scenario.loadgen, _COMPILED_IN)
    settings.scenario = getattr(mlperf_loadgen.TestScenario, scenario.loadgen)
    return settings


def _values(settings: Any) -> dict[str, Value]:
    """Every plain field."""
    names = [name for name in dir(settings) if not name.startswith("_")]
    return {name: value for name in names if isinstance(value := getattr(settings, name), bool | int | float | str)}
