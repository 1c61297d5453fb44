"""`nfold demo`: the main job in a few minutes on this machine, from nothing to the report."""

import socket
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..deployments.config import HttpConfig, MetricsConfig
from .chat import stream_chat
from .config import NfoldConfig
from .load import LoadSettings
from .report import ScalingReport, render
from .service import Progress, api_url, only_model, start_service, stop_service
from .terminal import told_progress

QUESTION = "What is 347 + 582?"
REPEATS = 3
LOAD = LoadSettings(warmup_s=2.0, window_s=6.0)
NOISY_SPREAD = 0.1


def run_demo(home: Path, console: Console, told: Console, *, keep: bool) -> ScalingReport:
    """A local cluster of two nodes, a chat, the baseline of one node, load on both, the report.

    Args:
        console: where chat and report go.
        told: where progress goes.
        keep: leave the service running.

    Raises:
        NfoldError: what went wrong; nothing is left running then.
    """
    with told_progress(told) as progress:
        state = start_service(demo_config(_port_is_free), home, progress)
    try:
        _show_chat(state.config, console)
        with told_progress(told) as progress:
            report = _measure(state.config, home, progress)
        console.print(render(report))
        if report.one_node_spread is not None and report.one_node_spread > NOISY_SPREAD:
            told.print(
                "The baseline's repeats differ: something else used this machine, so take the figures with care."
            )
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            told.print("Ending all of it; `nfold demo --keep` leaves it running.")
            with told_progress(told) as progress:
                stop_service(state, home, progress, drain=False)
    return report


def demo_config(is_free: Callable[[str, int], bool]) -> NfoldConfig:
    """The default under a name of its own, with free ports where the usual ones are taken, without prefix caches,
    which make a question cheaper once the like was asked: one node and two would not do equal work."""
    config = NfoldConfig.default()
    http, metrics = config.http, config.metrics
    return config.model_copy(
        update={
            "name": "demo",
            "models": [model.without_prefix_cache() for model in config.models],
            "http": HttpConfig(host=http.host, port=_choose(http.host, http.port, is_free)),
            "metrics": MetricsConfig(host=metrics.host, port=_choose(metrics.host, metrics.port, is_free)),
        }
    )


def _choose(host: str, port: int, is_free: Callable[[str, int], bool]) -> int:
    return next(candidate for candidate in range(port, port + 100) if is_free(host, candidate))


def _port_is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) != 0


def _show_chat(config: NfoldConfig, console: Console) -> None:
    console.print(Text(QUESTION, style="bold"))
    for piece in stream_chat(api_url(config), only_model(config), QUESTION):
        console.print(piece, end="", style="cyan", markup=False, highlight=False, soft_wrap=True)
    console.print("\n")


def _measure(config: NfoldConfig, home: Path, progress: Progress) -> ScalingReport:
    from .measuring import measure_all_nodes, take_baseline  # imports Ray

    # Short: what the load generator's own limit would tell is for `nfold baseline`.
    baseline = take_baseline(
        config,
        home,
        only_model(config),
        progress,
        repeats=REPEATS,
        settings=LOAD,
        roofline=False,
    )
    return measure_all_nodes(config, baseline, progress, settings=LOAD)
