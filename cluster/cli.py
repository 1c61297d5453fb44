"""The command line: verbs only. Each hands on to another file and shows what came of it.

What imports Ray is imported inside the verbs: Ray reads its environment when it is imported, and `--help` need not
wait for it.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..models.errors import NfoldError
from ..models.settings import Settings
from .bench.command import bench, compare, report, submission, verify
from .chat import stream_chat
from .config import NfoldConfig, load_config
from .controller.commands import history, why
from .run_state import RunState, find_run
from .service import (
    api_url,
    listeners,
    observer_url,
    only_model,
    running_service,
    start_service,
    stop_service,
)
from .terminal import show_error, told_progress, wait_for_signal

app = typer.Typer(
    name="nfold",
    help="Serve large models on a Ray cluster, with an account of every token lost on the way to N-fold.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
told = Console(stderr=True)

ConfigPath = Annotated[Path | None, typer.Argument(help="YAML; without one, the model that comes with nfold.")]
Model = Annotated[str | None, typer.Argument(help="The served model; not needed when there is only one.")]
Name = Annotated[str | None, typer.Option(help="The service; not needed when only one is running.")]


@app.command()
def serve(
    config_path: ConfigPath = None,
    foreground: Annotated[bool, typer.Option(help="Stay until Ctrl-C, then take the service down.")] = False,
) -> None:
    """Serve models: on a local cluster, which this starts, or on a running Ray cluster."""
    config = load_config(config_path) if config_path else NfoldConfig.default()
    with told_progress(told) as progress:
        state = start_service(config, _home(), progress)
        from .measuring import publish_kept_baselines

        notes = publish_kept_baselines(config, _home())
    _show_listeners(state)
    for note in notes:
        told.print(f"no efficiency yet: {note}", style="dim", soft_wrap=True, markup=False)
    if not foreground:
        return
    wait_for_signal()
    with told_progress(told) as progress:
        stop_service(state, _home(), progress)


@app.command()
def status(
    name: Name = None, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False
) -> None:
    """Nodes, pools and models of a running service, and how close it is to its baseline."""
    state = running_service(_home(), name)
    from .status import gather, render

    gathered = gather(state)
    console.print_json(json.dumps(gathered)) if as_json else console.print(render(gathered))


@app.command()
def scale(
    model: Annotated[str, typer.Argument(help="The served model.")],
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes it is to have.")],
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for nodes of a real cluster.")] = 900.0,
    name: Name = None,
) -> None:
    """Serve a model on more or fewer nodes. Streams in progress go on."""
    state = running_service(_home(), name)
    from .scaling import scale as scale_model

    with told_progress(told) as progress:
        scaled = scale_model(state, model, nodes, timeout, progress)
    console.print(f"{model}: {scaled.num_nodes} nodes, {scaled.num_replicas} replicas")


@app.command()
def down(
    name: Name = None,
    now: Annotated[bool, typer.Option(help="Cut off what is in progress; local clusters only.")] = False,
) -> None:
    """Take a service down, with the local cluster under it. Requests in progress are finished first."""
    state = find_run(_home(), name)
    with told_progress(told) as progress:
        stop_service(state, _home(), progress, drain=not now)
    console.print(f"{state.config.name} is down")


@app.command()
def baseline(
    model: Model = None,
    workload: Annotated[
        str | None, typer.Option(help="sums, random, or random-PROMPT-OUTPUT in median tokens.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="The median counts.")] = 3,
    window: Annotated[float, typer.Option(min=1, help="Seconds measured in each repeat.")] = 10.0,
    curve: Annotated[
        bool, typer.Option(help="Measure the step-time curve, by which the ledger tells losses within steps apart.")
    ] = True,
    max_spread: Annotated[
        float, typer.Option(min=0, help="(highest - lowest) / median of the repeats; more is no baseline.")
    ] = 0.1,
    name: Name = None,
) -> None:
    """Measure one node of a running service at saturation, and keep it as the yardstick of scaling efficiency."""
    state = running_service(_home(), name)
    from .load import LoadSettings
    from .measuring import take_baseline

    with told_progress(told) as progress:
        taken = take_baseline(
            state.config,
            _home(),
            model or only_model(state.config),
            progress,
            workload=workload,
            repeats=repeats,
            settings=LoadSettings(window_s=window),
            curve=curve,
            max_spread=max_spread,
        )
    spread = f", spread {taken.spread:.1%}" if repeats > 1 else ""
    console.print(f"{taken.key}: {taken.tokens_per_s:,.0f} tokens/s on {taken.node}{spread}", soft_wrap=True)


@app.command()
def ledger(
    model: Model = None,
    by: Annotated[str | None, typer.Option(help="Also each pool, node or replica.")] = None,
    watch: Annotated[bool, typer.Option(help="Show it anew each second, until Ctrl-C.")] = False,
    svg: Annotated[Path | None, typer.Option(help="Draw the longest window of one model into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    name: Name = None,
) -> None:
    """Where the tokens went: the gap between the baselines and what comes out, split into named losses."""
    config = find_run(_home(), name).config
    from .ledger_view import check_by, draw, fetch, render
    from .ledger_view import watch as watch_ledger

    parts, url = check_by(by), observer_url(config)
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            watch_ledger(url, model, parts, console)
        return
    models = fetch(url)
    if svg is not None:
        chosen = model or only_model(config)
        draw(models, chosen, svg)
        console.print(f"drawn into {svg}", soft_wrap=True, markup=False)
    elif as_json:
        console.print_json(json.dumps({each: entry["ledgers"] for each, entry in models.items()}))
    else:
        console.print(render(models, model, parts))


@app.command()
def chat(
    text: Annotated[str, typer.Argument(help="What to say.")],
    model: Annotated[str | None, typer.Option(help="The served model; not needed when there is only one.")] = None,
    name: Name = None,
) -> None:
    """Say something to a served model, and see the answer as it comes."""
    config = find_run(_home(), name).config
    for piece in stream_chat(api_url(config), model or only_model(config), text):
        console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    console.print()


@app.command()
def demo(keep: Annotated[bool, typer.Option(help="Leave the service running at the end.")] = False) -> None:
    """The main job on this machine: two nodes, a chat, the baseline of one, both under load, the report."""
    from .demo import run_demo

    run_demo(_home(), console, told, keep=keep)


app.command()(bench)
app.command()(verify)
app.command()(compare)
app.command()(report)
app.command()(submission)
app.command()(history)
app.command()(why)


def _home() -> Path:
    return Settings.from_environment().home


def _show_listeners(state: RunState) -> None:
    for what, url in listeners(state.config).items():
        console.print(f"{what:8}{url}", soft_wrap=True)


def main() -> None:
    """The `nfold` program: an error of nfold's own is one paragraph and exit code 1."""
    try:
        app()
    except NfoldError as error:
        show_error(error)
        sys.exit(1)
