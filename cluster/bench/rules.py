"""What the rules say of each workload: LoadGen's model keys, scenarios, accuracy gates.

Durations, latency limits, sample counts and seeds stand here for nothing that MLCommons has a key for: they come
from the configuration that is compiled into LoadGen. Accuracy gates are not in it; they are those of MLPerf
Inference v6.0 (inference_rules.adoc and the submission checker's constants).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...models.errors import ConfigError
from .scenarios import Scenario


@dataclass(frozen=True, kw_only=True)
class Gate:
    """When an accuracy run is passed.

    Attributes:
        metric: `exact`, `rouge`, `exact_match` or `vbench`.
        at_least: least score by name, in the metric's unit.
        at_most: most, by name.
        source: where the figures come from.
    """

    metric: str
    at_least: Mapping[str, float]
    at_most: Mapping[str, float] = field(default_factory=dict[str, float])
    source: str

    def misses(self, scores: Mapping[str, float]) -> list[str]:
        """What keeps `scores` from passing, as phrases; empty when they pass."""
        found = [f"no {name}" for name in (*self.at_least, *self.at_most) if name not in scores]
        for name, least in self.at_least.items():
            if name in scores and scores[name] < least:
                found.append(f"{name} {scores[name]:.4f} is below {least:.4f}")
        for name, most in self.at_most.items():
            if name in scores and scores[name] > most:
                found.append(f"{name} {scores[name]:.4f} is above {most:.4f}")
        return found


@dataclass(frozen=True, kw_only=True)
class Rules:
    """One workload.

    Attributes:
        name: as results are published.
        loadgen_key: LoadGen's model key.
        interactive_key: that of Interactive; empty where it is not known.
        scenarios: those that the workload has.
        gate: of accuracy runs.
        official: MLCommons' own workload.
        limits_ms: TTFT and TPOT limits by scenario where LoadGen's configuration has none for the key.
        needs_text_to_video: its answers are videos, which no engine of nfold makes.
    """

    name: str
    loadgen_key: str
    interactive_key: str = ""
    scenarios: tuple[Scenario, ...]
    gate: Gate | None
    official: bool = False
    limits_ms: Mapping[Scenario, tuple[int, int]] = field(
        default_factory=lambda: {Scenario.SERVER: (2000, 200), Scenario.INTERACTIVE: (450, 40)}
    )
    needs_text_to_video: bool = False

    def key_of(self, scenario: Scenario) -> str:
        """LoadGen's model key.

        Raises:
            ConfigError: the workload has no such scenario.
        """
        if scenario not in self.scenarios:
            known = ", ".join(self.scenarios)
            raise ConfigError("scenario", scenario.value, f"{self.name} has {known}")
        return self.interactive_key if scenario is Scenario.INTERACTIVE else self.loadgen_key


_V60 = "MLPerf Inference v6.0"
_ROUGE = {"rouge1": 44.4312, "rouge2": 22.0352, "rougeL": 28.6162}
_LLM = (Scenario.OFFLINE, Scenario.SERVER, Scenario.INTERACTIVE)


def _llama_gate(share: float) -> Gate:
    return Gate(
        metric="rouge",
        at_least={name: score * share for name, score in _ROUGE.items()} | {"tokens_per_sample": 0.9 * 294.45},
        at_most={"tokens_per_sample": 1.1 * 294.45},
        source=f"{_V60}: {share:.1%} of the reference's ROUGE, 90 to 110 % of its 294.45 tokens per sample",
    )


def _llama(name: str, share: float) -> Rules:
    return Rules(
        name=name,
        loadgen_key="llama2-70b",
        interactive_key="llama2-70b-interactive",
        scenarios=_LLM,
        gate=_llama_gate(share),
        official=True,
    )


GPT_OSS = Rules(
    name="gpt-oss-120b",
    loadgen_key="gpt-oss-120b",
    interactive_key="gpt-oss-120b-interactive",
    scenarios=_LLM,
    gate=Gate(
        metric="exact_match",
        at_least={"exact_match": 0.99 * 83.13},
        source=f"{_V60}: 99 % of the reference's 83.13 over AIME 2025, GPQA Diamond and LiveCodeBench v6",
    ),
    official=True,
)
WAN = Rules(
    name="wan-2.2-t2v-a14b",
    loadgen_key="wan-2.2-t2v-a14b",
    scenarios=(Scenario.OFFLINE, Scenario.SINGLE_STREAM),
    gate=Gate(
        metric="vbench", at_least={"vbench_score": 0.99 * 70.48}, source=f"{_V60}: 99 % of the reference's 70.48"
    ),
    official=True,
    needs_text_to_video=True,
)
SUMS = Rules(
    name="sums",
    loadgen_key="nfold-sums",
    interactive_key="nfold-sums-interactive",
    scenarios=tuple(Scenario),
    gate=Gate(
        metric="exact", at_least={"exact": 0.99}, source="nfold's own: 99 % of the answers are the right sums"
    ),
)

OFFICIAL = {
    "llama2-70b": _llama("llama2-70b-99.9", 0.999),
    "llama2-70b-99": _llama("llama2-70b-99", 0.99),
    "llama2-70b-99.9": _llama("llama2-70b-99.9", 0.999),
    "gpt-oss-120b": GPT_OSS,
    "wan-2.2-t2v": WAN,
    "wan-2.2-t2v-a14b": WAN,
}


def free_form_rules(name: str) -> Rules:
    """Of a workload that nobody has rules for: LoadGen's defaults, nfold's latency limits, no accuracy."""
    return Rules(
        name=name,
        loadgen_key="free-form",
        interactive_key="free-form-interactive",
        scenarios=tuple(Scenario),
        gate=None,
    )


def rules_of(workload: str) -> Rules:
    """By the name that the command line knows; what is neither MLCommons' nor `sums` is free-form."""
    return SUMS if workload == SUMS.name else OFFICIAL.get(workload) or free_form_rules(workload)
