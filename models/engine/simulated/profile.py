"""What is known of one accelerator serving one model: a step-time curve, and the results it was fitted to.

The curve reads as a bill, in seconds of one step:

    step  =  fixed_s                                launches, weights read once
          +  prefill_token_s x prompt tokens        arithmetic
          +  decode_token_s  x decode tokens        arithmetic
          +  kv_token_s      x context tokens held  KV cache read by attention

Profiles are JSON files beside this one, `<accelerator>--<model>.json`. Each figure in them says whether it was
published, derived or assumed, and from where.
"""

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from ...errors import ConfigError

PROFILES = Path(__file__).parent / "profiles"

Kind = Literal["published", "derived", "assumed"]

_STRICT = ConfigDict(extra="forbid")


@checked(frozen=True, slots=True, config=_STRICT)
class StepTimeCurve:
    """Seconds of one step, see the file's top."""

    fixed_s: float
    prefill_token_s: float
    decode_token_s: float
    kv_token_s: float

    def step_s(self, num_prefill_tokens: float, num_decode_tokens: float, num_kv_tokens: float) -> float:
        return (
            self.fixed_s
            + self.prefill_token_s * num_prefill_tokens
            + self.decode_token_s * num_decode_tokens
            + self.kv_token_s * num_kv_tokens
        )


@checked(frozen=True, slots=True, config=_STRICT)
class EngineLimits:
    """Engine settings of one scenario, with vLLM's names where it has one.

    Attributes:
        max_num_seqs: most requests in one step.
        max_num_batched_tokens: the token budget of one step.
        prefill_every_steps: waiting requests are admitted in every n-th step only.
        prefill_always_below: with fewer requests running than this, they are admitted in any step.
        async_scheduling: a step is composed while the one before it runs, so what arrives then waits one step more.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    prefill_every_steps: int = 1
    prefill_always_below: int = 0
    async_scheduling: bool = False


@checked(frozen=True, slots=True, config=_STRICT)
class Figure:
    """One number and where it comes from.

    Attributes:
        value: what was published; None where only a limit is known that was kept.
        max: that limit.
        fitted: false where more than an engine was measured, so that the curve need not explain it.
    """

    kind: Kind
    source: str
    value: float | None = None
    max: float | None = None
    fitted: bool = True


@checked(frozen=True, slots=True, config=_STRICT)
class LoadgenRun:
    """The load of a published run, of the whole node.

    Attributes:
        num_samples: requests issued.
        samples_per_s: Poisson rate; None where all come at once (Offline).
        tokens_per_sample: output tokens per request, mean.
        last_answer_tokens: of the request issued last: LoadGen's clock stops at its end, so it decides how much of
            the drain counts. None where nothing is known.
    """

    kind: Kind
    source: str
    num_samples: int
    samples_per_s: float | None
    tokens_per_sample: float
    last_answer_tokens: int | None = None


@checked(frozen=True, slots=True, config=_STRICT)
class ScenarioProfile:
    """One MLPerf scenario.

    Attributes:
        figures: results by name: `tokens_per_s` (of one accelerator), `ttft_p50_s`, `ttft_p99_s`, `tpot_p50_s`,
            `tpot_p99_s`.
    """

    limits: EngineLimits
    limits_source: str
    run: LoadgenRun
    figures: dict[str, Figure]


@checked(frozen=True, slots=True, config=_STRICT)
class StepTimeProfile:
    """One accelerator (tp 1) serving one model.

    Attributes:
        workload: name in `lengths.WORKLOADS` of the lengths that the results were measured with.
        num_accelerators: of the node that the results were measured on.
        kv_capacity_tokens: tokens that the KV cache holds.
        vocab_size: simulated answers are made of ids below it.
        curve_source: what of the curve was fitted and what derived.
        scenarios: by name: `offline`, `server`, `interactive`.
    """

    accelerator: str
    model: str
    workload: str
    num_accelerators: int
    max_model_len: int
    vocab_size: int
    kv_capacity_tokens: int
    kv_capacity_source: str
    curve: StepTimeCurve
    curve_source: str
    scenarios: dict[str, ScenarioProfile]

    @property
    def name(self) -> str:
        return f"{self.accelerator}--{self.model}"

    def scenario(self, name: str) -> ScenarioProfile:
        """
        Raises:
            ConfigError: nothing is known of this scenario; names those that are.
        """
        if name not in self.scenarios:
            known = ", ".join(self.scenarios)
            raise ConfigError("scenario", name, f"the profile {self.name} has {known}")
        return self.scenarios[name]


_READER = TypeAdapter(StepTimeProfile)


def profile_names(directory: Path = PROFILES) -> list[str]:
    """Names that `load_profile` knows."""
    return sorted(path.stem for path in directory.glob("*--*.json"))


@cache
def load_profile(name: str, directory: Path = PROFILES) -> StepTimeProfile:
    """The profile `<accelerator>--<model>`.

    Raises:
        ConfigError: there is none of this name, or its file is wrong; says where.
    """
    names = profile_names(directory)
    if name not in names:
        raise ConfigError("profile", name, f"must be one of {', '.join(names)}")
    try:
        return _READER.validate_json((directory / f"{name}.json").read_text())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"profiles/{name}.json: {where}", problem.get("input"), problem["msg"]) from error
