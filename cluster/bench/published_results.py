"""Results that others published, to stand beside ours: MLPerf Inference v5.1 and v6.0, `mlperf_log_summary.txt` and
`summary_results.json` of the submissions."""

from dataclasses import dataclass

from .scenarios import Scenario


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """One published figure: tokens/s of so many accelerators.

    Attributes:
        target_qps: queries/s that LoadGen sent, where its log was published.
    """

    workload: str
    accelerator: str
    num_accelerators: int
    scenario: Scenario
    tokens_per_s: float
    source: str
    target_qps: float | None = None


_O, _S, _I = Scenario.OFFLINE, Scenario.SERVER, Scenario.INTERACTIVE
_LLAMA, _GPT_OSS = "llama2-70b", "gpt-oss-120b"
_AMD = "v6.0, AMD, vLLM MXFP4"
_TARGETS = {
    (_LLAMA, 8, _S): 360,
    (_LLAMA, 87, _S): 3_650,
    (_LLAMA, 8, _I): 263,
    (_LLAMA, 87, _I): 2_800,
    (_GPT_OSS, 8, _S): 61.2,
    (_GPT_OSS, 94, _S): 705,
}

PUBLISHED = tuple(
    PublishedResult(
        workload,
        accelerator,
        count,
        scenario,
        tokens_per_s,
        f"MLPerf Inference {source}",
        _TARGETS.get((workload, count, scenario)) if source == _AMD else None,
    )
    for workload, accelerator, count, source, figures in (
        (_LLAMA, "MI355X", 8, _AMD, {_O: 103_480, _S: 100_282, _I: 73_608}),
        (_LLAMA, "MI355X", 87, _AMD, {_O: 1_042_110, _S: 1_016_375, _I: 785_522}),
        (_GPT_OSS, "MI355X", 8, _AMD, {_O: 95_004, _S: 82_136}),
        (_GPT_OSS, "MI355X", 94, _AMD, {_O: 1_031_070, _S: 900_054}),
        (_LLAMA, "MI300X", 8, "v6.0, MangoBoost, LLMBoost FP8", {_O: 27_599, _S: 25_463}),
        (_LLAMA, "MI325X", 8, "v6.0, MangoBoost, LLMBoost FP8", {_O: 33_880, _S: 31_889}),
        (_LLAMA, "MI300X", 8, "v5.1, AMD", {_I: 8_840}),
        (_LLAMA, "MI325X", 8, "v5.1, MiTAC", {_I: 18_846}),
        (_LLAMA, "B200", 8, "v6.0, HPE, TensorRT-LLM FP4", {_O: 104_572, _S: 103_627, _I: 61_300}),
        (_GPT_OSS, "H200", 8, "v6.0, Red Hat, llm-d and vLLM MXFP4", {_O: 28_680, _S: 24_103}),
        (_GPT_OSS, "B200", 8, "v6.0, Red Hat, llm-d and vLLM", {_O: 93_071, _S: 71_588}),
    )
    for scenario, tokens_per_s in figures.items()
)


def published_efficiency(result: PublishedResult) -> float | None:
    """Of a result on several nodes: over as many accelerators of the single node that the same submitter published;
    None where there is none."""
    alone = [
        other
        for other in PUBLISHED
        if (other.workload, other.accelerator, other.scenario, other.source)
        == (result.workload, result.accelerator, result.scenario, result.source)
        and other.num_accelerators < result.num_accelerators
    ]
    if not alone:
        return None
    node = min(alone, key=lambda other: other.num_accelerators)
    return result.tokens_per_s / result.num_accelerators / (node.tokens_per_s / node.num_accelerators)


def published_for(
    workload: str, accelerator: str, num_accelerators: int, scenario: Scenario
) -> list[PublishedResult]:
    """Those of the same workload, accelerator, number and scenario.

    Args:
        workload: `llama2-70b-99.9` and its like count by what they begin with.
    """
    return [
        result
        for result in PUBLISHED
        if workload.startswith(result.workload)
        and result.accelerator == accelerator.removeprefix("simulated-")
        and result.num_accelerators == num_accelerators
        and result.scenario is scenario
    ]
