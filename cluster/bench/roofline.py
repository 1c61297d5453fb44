"""The client's own roofline: what LoadGen, router and sockets reach here when engines cost nothing."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..roofline import ReplicaSize, empty_replicas
from .client import ClientJob, ClientResult
from .client_process import run_in_process
from .rules import Rules
from .samples import SampleSet
from .scenarios import Scenario
from .settings import Asked, run_settings

# Engines of the stub: messages per second are what a router pays for, so there are some of them.
NUM_STUBS = 4
STUB_SLOTS = 4096
_MIN_QUERIES = 256
_MAX_QUERIES = 65_536
# Seconds' worth of the wanted rate that are sent at once. A stub takes a second over an answer of a thousand
# tokens, so about so many times the wanted rate is the most that can be seen.
_SECONDS = 4.0
# The best stretch of the run counts: begin and end of so few queries are no limit of the client.
_STRETCH_S = 0.9

RunClient = Callable[[ClientJob], ClientResult]


def measure_roofline(
    model: str,
    max_model_len: int,
    rules: Rules,
    samples: SampleSet,
    *,
    expected_qps: float,
    run: RunClient = run_in_process,
) -> float:
    """Output tokens/s against stub engines, with the samples of the run that follows.

    Args:
        model, max_model_len: of that run's replicas.
        expected_qps: of that run.
        run: what runs a client.

    Raises: as `run_client`.
    """
    scenario = Scenario.OFFLINE if Scenario.OFFLINE in rules.scenarios else rules.scenarios[0]
    count = int(np.clip(expected_qps * _SECONDS, _MIN_QUERIES, _MAX_QUERIES))
    asked = Asked(
        target_qps=1.0,
        min_duration_s=0.0,
        min_queries=count,
        sample_count=min(count, len(samples)),
        max_queries=count,
    )
    settings = run_settings(rules, scenario, len(samples), asked=asked)
    with (
        empty_replicas([ReplicaSize(model, STUB_SLOTS, max_model_len)] * NUM_STUBS) as replicas,
        tempfile.TemporaryDirectory() as directory,
    ):
        nodes: Mapping[str, str] = {replica.replica_id: "stub" for replica in replicas}
        job = ClientJob(
            model=model,
            replicas=tuple(replicas),
            nodes=nodes,
            samples=samples,
            settings=settings,
            log_dir=Path(directory),
        )
        return best_rate(run(job))


def best_rate(result: ClientResult) -> float:
    """Tokens/s of the best stretch of about a second."""
    times_s, tokens = result.timeline_s, result.node_tokens.sum(axis=1)
    best = result.num_tokens / result.end_s
    for begin in range(len(times_s)):
        end = int(np.searchsorted(times_s, times_s[begin] + _STRETCH_S))
        if end < len(times_s):
            best = max(best, float(tokens[end] - tokens[begin]) / float(times_s[end] - times_s[begin]))
    return best
