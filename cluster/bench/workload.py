"""A workload as it is asked for: its rules with the samples to run it on."""

from dataclasses import dataclass
from pathlib import Path

from ...models.config import ModelConfig
from ...models.engine.simulated.lengths import WORKLOADS
from ...models.errors import ConfigError, StateError
from .made_sets import random_set, read_trace, sums_set, synthetic_set
from .official_sets import read_gpt_oss, read_openorca, read_vbench_prompts
from .rules import GPT_OSS, SUMS, Rules, rules_of
from .samples import SampleSet

# Of the sets without an official size.
DEFAULT_SAMPLES = 2048
# So many sums tell a share of right answers to a percent or two.
SUMS_ACCURACY_SAMPLES = 512
# Sizes of the official sets, for synthetic ones in their place.
_SIZES = {"openorca": 24_576, "pubmed-summaries": 6_396}
_SETS = {"llama2-70b": "openorca", "gpt-oss-120b": "pubmed-summaries"}


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What a workload must know of the served model.

    Attributes:
        directory: its checkpoint; None when it is simulated.
        vocab_size: where ids of random prompts end.
    """

    directory: Path | None
    simulated: bool
    vocab_size: int
    max_model_len: int

    @classmethod
    def of(cls, directory: Path | None, settings: dict[str, str | int | float | bool], max_model_len: int):
        """Of a replica with these effective settings."""
        simulated = bool(settings.get("simulated"))
        if simulated or directory is None:
            vocab_size = int(settings.get("vocab_size", 127))
        else:
            vocab_size = ModelConfig.from_directory(directory).vocab_size
        return cls(directory=directory, simulated=simulated, vocab_size=vocab_size, max_model_len=max_model_len)


@dataclass(frozen=True, kw_only=True)
class BenchWorkload:
    """Rules and samples.

    Attributes:
        asked: the name that it was asked for by.
        performance: what performance runs take their queries from.
        accuracy: what accuracy runs do; None where answers cannot be judged, `why_no_accuracy` says why.
    """

    asked: str
    rules: Rules
    performance: SampleSet
    accuracy: SampleSet | None
    why_no_accuracy: str = ""


def make_workload(
    asked: str,
    model: ServedModel,
    *,
    data: Path | None = None,
    accuracy_data: Path | None = None,
    num_samples: int | None = None,
) -> BenchWorkload:
    """
    Args:
        asked: `sums`, an official workload's name, `random-PROMPT-OUTPUT` in median tokens, or `trace`.
        data: the official file, or the chat trace; None takes synthetic samples.
        accuracy_data: of workloads whose accuracy set is another file.
        num_samples: fewer than the set has.

    Raises:
        ConfigError: no such workload, or see the readers.
        StateError: no engine that serves can answer it.
    """
    rules = rules_of(asked)
    if num_samples is not None and num_samples < 1:
        raise ConfigError("samples", num_samples, f"the workload {asked} has no samples; at least one is needed")
    if rules.needs_text_to_video:
        if data is not None:
            read_vbench_prompts(data)
        raise StateError(
            f"{asked} asks for videos; the served model gives tokens. No engine of nfold makes videos yet"
        )
    performance = _performance_set(asked, rules, model, data, num_samples)
    if num_samples is not None and num_samples < len(performance):
        performance = performance.first(num_samples)
    accuracy, why = _accuracy_set(rules, model, performance, accuracy_data)
    return BenchWorkload(asked=asked, rules=rules, performance=performance, accuracy=accuracy, why_no_accuracy=why)


def _performance_set(asked: str, rules: Rules, model: ServedModel, data: Path | None, num: int | None) -> SampleSet:
    if rules.official:
        name = _SETS[rules.loadgen_key]
        if data is not None:
            return read_openorca(data) if name == "openorca" else read_gpt_oss(data, accuracy=False)
        return synthetic_set(
            name, num or _SIZES[name], model.vocab_size, model.max_model_len, simulated=model.simulated
        )
    count = num or DEFAULT_SAMPLES
    if rules is SUMS:
        return sums_set(_directory(asked, model), count)
    if asked == "trace":
        if data is None:
            raise ConfigError("data", None, "the workload trace needs a file of chats, one JSON object per line")
        return read_trace(data, _directory(asked, model), model.max_model_len)
    if asked in WORKLOADS:
        return synthetic_set(asked, count, model.vocab_size, model.max_model_len, simulated=model.simulated)
    kind, *lengths = asked.split("-")
    if kind == "random" and len(lengths) in (0, 2) and all(length.isdecimal() for length in lengths):
        prompt, output = map(int, lengths) if lengths else (128, 128)
        return random_set(prompt, output, count, model.vocab_size, model.max_model_len, simulated=model.simulated)
    known = "sums, llama2-70b, gpt-oss-120b, wan-2.2-t2v, openorca, pubmed-summaries, random-PROMPT-OUTPUT, trace"
    raise ConfigError("workload", asked, f"known are {known}")


def _directory(asked: str, model: ServedModel) -> Path:
    if model.directory is None:
        raise StateError(f"{asked} needs a model with a tokenizer; a simulated one has none")
    return model.directory


def _accuracy_set(
    rules: Rules, model: ServedModel, performance: SampleSet, accuracy_data: Path | None
) -> tuple[SampleSet | None, str]:
    if model.simulated:
        return None, "simulated engines compute no tokens"
    if rules.gate is None:
        return None, "nobody has said what a right answer is"
    if rules is GPT_OSS:
        if accuracy_data is None:
            return None, "the accuracy set is a file of its own, which was not given"
        return read_gpt_oss(accuracy_data, accuracy=True), ""
    if not performance.references:
        return None, "synthetic samples have no right answers; give the official file"
    return performance.first(SUMS_ACCURACY_SAMPLES) if rules is SUMS else performance, ""
