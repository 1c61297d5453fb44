"""What the same requests would see of the same engines if the control plane took no time: replayed in virtual time.

Each request reaches, at the moment when it comes, the engine that has the fewest requests for its speed, and each
token is seen when its step is due. The replay cannot repeat the router's choices instead: these follow the phases
of engines' steps, which differ from run to run; what is chosen for one phase is good or bad luck in another.
"""

import heapq
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from control_plane_requests import F64, Requests
from nfold.models.engine.simulated.profile import StepTimeProfile
from nfold.models.engine.simulated.sequences import known_sequences
from nfold.models.engine.simulated.virtual import VirtualEngine, make_load, replay
from nfold.models.errors import ConfigError


def ideal_ttft_s(
    engines: Sequence[tuple[StepTimeProfile, str]],
    requests: Requests,
    begin_s: float,
    end_s: float,
) -> F64:
    """[M] TTFTs of the requests that come in [begin_s, end_s), in their order.

    Args:
        engines: profile and scenario of each.

    Raises:
        ConfigError: a scenario without a published rate.
    """
    return _Replay(engines, requests).first_tokens_of(begin_s, end_s)


def steady_tpot_s(profile: StepTimeProfile, scenario: str, queries_per_s: float, seconds: float = 900.0) -> float:
    """Time between two tokens on one accelerator that has long had `queries_per_s`, median: the second half of a
    replay of so many seconds."""
    per_node = queries_per_s * profile.num_accelerators
    run = replace(profile.scenario(scenario).run, samples_per_s=per_node, num_samples=round(per_node * seconds))
    values_s = replay(profile, scenario, make_load(profile, run)).tpot_s
    return float(np.median(values_s[len(values_s) // 2 :]))


class _Replay:
    def __init__(self, engines: Sequence[tuple[StepTimeProfile, str]], requests: Requests) -> None:
        self._requests = requests
        self._engines = [VirtualEngine(profile, scenario) for profile, scenario in engines]
        self._speeds = np.array([_speed(profile, scenario) for profile, scenario in engines])
        self._in_flight = np.zeros(len(engines))
        self._steps: list[tuple[float, int]] = []
        self._first_s = np.full(len(requests), np.nan)
        longest = engines[0][0].max_model_len
        self._sequences = known_sequences(requests.prompt_lens, requests.answer_lens, longest)

    def first_tokens_of(self, begin_s: float, end_s: float) -> F64:
        due_s = self._requests.due_s
        first, last = np.searchsorted(due_s, (begin_s, end_s))
        for row in range(len(due_s)):
            now_s = float(due_s[row])
            if now_s >= end_s and not np.isnan(self._first_s[first:last]).any():
                break
            while self._steps and self._steps[0][0] <= now_s:
                self._end_step()
            self._submit(row, now_s)
        while self._steps and np.isnan(self._first_s[first:last]).any():
            self._end_step()
        return self._first_s[first:last] - due_s[first:last]

    def _submit(self, row: int, now_s: float) -> None:
        index = int(np.argmin((self._in_flight + 1) / self._speeds))
        engine = self._engines[index]
        engine.submit(self._sequences[:, row : row + 1])
        self._in_flight[index] += 1
        if engine.due_s is None:
            self._begin_step(index, now_s)

    def _begin_step(self, index: int, now_s: float) -> None:
        engine = self._engines[index]
        if engine.has_work:
            heapq.heappush(self._steps, (engine.begin_step(now_s), index))

    def _end_step(self) -> None:
        now_s, index = heapq.heappop(self._steps)
        new, _, _ = self._engines[index].end_step()
        fresh = new.ids[np.isnan(self._first_s[new.ids])]
        self._first_s[fresh] = now_s
        self._in_flight[index] -= int((new.finish != 0).sum())
        self._begin_step(index, now_s)


def _speed(profile: StepTimeProfile, scenario: str) -> float:
    value = profile.scenario(scenario).figures["tokens_per_s"].value
    if value is None:
        raise ConfigError("scenario", scenario, f"the profile {profile.name} has no rate for it")
    return value
