"""Fits the step-time curves to the published results, and prints what remains between them.

    python -m nfold.models.engine.simulated.fit [--refit] [PROFILE ...]

Each published run is replayed whole on one accelerator in virtual time: its number of requests, its rate, its
tokens per request, with ramp and drain. The last line is JSON.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from .profile import PROFILES, Figure, StepTimeCurve, StepTimeProfile, load_profile, profile_names
from .virtual import Load, make_load, replay

F64 = NDArray[np.float64]
Logs = NDArray[np.floating]  # [3] of the terms in _FITTED

# How far, in relative terms, a figure may be off to weigh as much as another that is off by its own tolerance.
_TOLERANCES = {"tokens_per_s": 0.003, "tpot_p50_s": 0.02, "tpot_p99_s": 0.04, "ttft_p50_s": 0.2, "ttft_p99_s": 0.3}
_LIMIT_TOLERANCE = 0.02
# Prompt and decode tokens need the same arithmetic; without this they are hard to tell apart.
_PREFILL_DECODE_TOLERANCE = 0.5
_FITTED = ("fixed_s", "prefill_token_s", "decode_token_s")


@dataclass(frozen=True, slots=True)
class Residual:
    """One figure of a profile, published and simulated. `error` is relative; None for a limit that is kept."""

    profile: str
    scenario: str
    name: str
    figure: Figure
    simulated: float

    @property
    def error(self) -> float | None:
        if self.figure.value is not None:
            return self.simulated / self.figure.value - 1
        assert self.figure.max is not None
        return self.simulated / self.figure.max - 1 if self.simulated > self.figure.max else None

    @property
    def weighted(self) -> float:
        tolerance = _TOLERANCES[self.name] if self.figure.value is not None else _LIMIT_TOLERANCE
        return log(1 + (self.error or 0.0)) / tolerance


def loads_of(profile: StepTimeProfile) -> dict[str, Load]:
    """The runs of all scenarios; the same requests in each replay."""
    return {name: make_load(profile, scenario.run) for name, scenario in profile.scenarios.items()}


def residuals(profile: StepTimeProfile, loads: Mapping[str, Load]) -> list[Residual]:
    """All figures of `profile` beside what its curve gives."""
    found: list[Residual] = []
    for name, scenario in profile.scenarios.items():
        result = replay(profile, name, loads[name])
        for figure_name, figure in scenario.figures.items():
            found.append(Residual(profile.name, name, figure_name, figure, result.figure(figure_name)))
    return found


def fit(profile: StepTimeProfile, loads: Mapping[str, Load], *, max_tries: int = 12) -> StepTimeProfile:
    """The same profile with its curve fitted: Levenberg-Marquardt on the logarithms of the fitted terms.

    A replay is dear, so the slopes are measured once and then corrected by what each try shows (Broyden).
    """
    logs = np.array([log(value) for name, value in asdict(profile.curve).items() if name in _FITTED])
    errors = _errors(profile, logs, loads)
    slopes = np.stack([(_errors(profile, logs + nudge, loads) - errors) / 0.02 for nudge in np.eye(3) * 0.02], 1)
    damping, gains = 0.01, [1.0]
    for _ in range(max_tries):
        normal = slopes.T @ slopes
        move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slopes.T @ errors).clip(-0.7, 0.7)
        tried = _errors(profile, logs + move, loads)
        before, after = float(errors @ errors), float(tried @ tried)
        _say(f"  {profile.name}: misfit {before:.2f}, tried {after:.2f}")
        slopes += np.outer(tried - errors - slopes @ move, move) / (move @ move)
        damping *= 0.2 if after < before else 5
        gains.append(max(0.0, 1 - after / before))
        if after < before:
            logs, errors = logs + move, tried
        if max(gains[-3:]) < 0.02:
            break
    return replace(profile, curve=_curve(profile, logs))


def _curve(profile: StepTimeProfile, logs: Logs) -> StepTimeCurve:
    return replace(
        profile.curve, **{name: float(f"{exp(value):.5g}") for name, value in zip(_FITTED, logs, strict=True)}
    )


def _errors(profile: StepTimeProfile, logs: Logs, loads: Mapping[str, Load]) -> F64:
    curve = _curve(profile, logs)
    pull = log(curve.prefill_token_s / curve.decode_token_s) / _PREFILL_DECODE_TOLERANCE
    found = residuals(replace(profile, curve=curve), loads)
    return np.array([*(residual.weighted for residual in found if residual.figure.fitted), pull])


def keep_curve(profile: StepTimeProfile) -> None:
    """Write the curve of `profile` into its file."""
    path = PROFILES / f"{profile.name}.json"
    content = json.loads(path.read_text())
    content["curve"] = asdict(profile.curve)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _line(residual: Residual) -> str:
    figure = residual.figure
    unit, scale = ("tokens/s", 1.0) if residual.name == "tokens_per_s" else ("ms", 1e3)
    known = f"{figure.value * scale:,.1f}" if figure.value is not None else f"<= {(figure.max or 0) * scale:,.0f}"
    error = "kept" if residual.error is None else f"{100 * residual.error:+.1f} %"
    where = f"{residual.profile:22} {residual.scenario:11} {residual.name:12}"
    kind = figure.kind if figure.fitted else f"{figure.kind}, not fitted"
    return f"{where} {known:>10} {residual.simulated * scale:>10,.1f} {unit:8} {error:>8}  {kind}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help="all when none is named")
    parser.add_argument("--refit", action="store_true", help="fit the curves anew and keep them")
    arguments = parser.parse_args()
    found: list[Residual] = []
    print("one simulated accelerator against the published results (per accelerator)")
    print(f"{'profile':22} {'scenario':11} {'figure':12} {'published':>10} {'simulated':>10} {'':8} {'error':>8}")
    for name in arguments.profiles or profile_names():
        profile = load_profile(name)
        loads = loads_of(profile)
        if arguments.refit:
            profile = fit(profile, loads)
            keep_curve(profile)
        for residual in residuals(profile, loads):
            found.append(residual)
            print(_line(residual), flush=True)
    throughput = [abs(one.error or 0.0) for one in found if one.name == "tokens_per_s"]
    print(
        json.dumps({"simulated": True, "figures": len(found), "worst_throughput_error": round(max(throughput), 5)})
    )


if __name__ == "__main__":
    main()
