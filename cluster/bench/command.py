"""The bench verbs of the command line. What imports LoadGen, pandas or Ray is imported inside."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ...models.errors import StateError
from ...models.settings import Settings
from ..service import only_model, running_service
from ..terminal import told_progress
from .order import BenchOrder, parse_nodes, parse_scenario
from .user_conf import UserConf, read_user_conf

if TYPE_CHECKING:
    from .record import RunRecord

console = Console()
told = Console(stderr=True)

RecordPath = Annotated[Path, typer.Argument(help="A run record: its folder or its archive.")]
RecordPaths = Annotated[list[Path], typer.Argument(help="Run records: folders or archives.")]
Model = Annotated[str | None, typer.Option(help="The served model; not needed when there is only one.")]
Name = Annotated[str | None, typer.Option(help="The service; not needed when only one is running.")]
Data = Annotated[
    Path | None,
    typer.Option(help="The official data set or a chat trace; without it synthetic samples of the same lengths."),
]
AccuracyData = Annotated[Path | None, typer.Option(help="The accuracy set, where it is another file.")]


def bench(
    workload: Annotated[
        str,
        typer.Argument(
            help="sums, llama2-70b, gpt-oss-120b, wan-2.2-t2v, random-PROMPT-OUTPUT (median tokens) or trace."
        ),
    ] = "sums",
    scenario: Annotated[str, typer.Option(help="Offline, Server, Interactive or SingleStream.")] = "Offline",
    nodes: Annotated[
        str | None, typer.Option(help="How many nodes, such as 1,2,4; all by default, and one for the baseline.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs on each number of nodes; the median counts.")] = 1,
    min_duration: Annotated[
        float | None, typer.Option(min=1, help="Seconds; less than LoadGen's own is no MLPerf result.")
    ] = None,
    target_qps: Annotated[float | None, typer.Option(min=0.001, help="Queries/s on the most nodes.")] = None,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds of load before each run.")] = 10.0,
    samples: Annotated[int | None, typer.Option(help="Fewer samples than the set has.")] = None,
    data: Data = None,
    accuracy_data: AccuracyData = None,
    user_conf: Annotated[Path | None, typer.Option(help="LoadGen's user.conf.")] = None,
    accuracy: Annotated[bool, typer.Option(help="Also an accuracy run.")] = True,
    find_peak: Annotated[bool, typer.Option(help="First find the highest load that keeps the limits.")] = False,
    without_baseline: Annotated[bool, typer.Option(help="Go without scaling efficiency.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the run record.")] = None,
    model: Model = None,
    name: Name = None,
) -> None:
    """Run an MLPerf scenario with LoadGen on a running service, and keep a run record."""
    _need_extra()
    order = BenchOrder(
        workload=workload,
        scenario=parse_scenario(scenario),
        nodes=parse_nodes(nodes),
        repeats=repeats,
        min_duration_s=min_duration,
        target_qps=target_qps,
        warmup_s=warmup,
        num_samples=samples,
        data=data,
        accuracy_data=accuracy_data,
        user_conf=UserConf() if user_conf is None else read_user_conf(user_conf),
        accuracy=accuracy,
        find_peak=find_peak,
        without_baseline=without_baseline,
    )
    state = running_service(_home(), name)
    from .bench import run_bench
    from .show import render_record

    with told_progress(told) as progress:
        record, directory = run_bench(
            state.config, _home(), model or only_model(state.config), order, out, progress
        )
    console.print(render_record(record))
    console.print(f"run record  {directory}", soft_wrap=True)


def verify(
    record: RecordPath,
    repeats: Annotated[int | None, typer.Option(min=1, help="Runs; by default as many as the record has.")] = None,
    margin: Annotated[float, typer.Option(min=0.1, max=50, help="Percent by which figures may differ.")] = 2.0,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new run record.")] = None,
    model: Model = None,
    name: Name = None,
) -> None:
    """Run a record's measurement again on a running service, and judge whether it was reproduced."""
    _need_extra()
    from .record_store import open_record

    with open_record(record) as (there, _):
        state = running_service(_home(), name)
        from .show_verdict import render_judgement
        from .verify import verify as run_again

        with told_progress(told) as progress:
            judgement, directory = run_again(
                there,
                state.config,
                _home(),
                model or only_model(state.config),
                repeats=repeats,
                data=data,
                margin=margin / 100,
                out=out,
                progress=progress,
            )
    console.print(render_judgement(judgement), soft_wrap=True)
    console.print(f"run record  {directory}", soft_wrap=True)


def compare(records: RecordPaths) -> None:
    """Put run records side by side."""
    _need_extra()
    from .record_store import open_record
    from .show_verdict import render_comparison

    opened: list[tuple[str, RunRecord]] = []
    for path in records:
        with open_record(path) as (record, _):
            opened.append((path.stem, record))
    console.print(render_comparison(opened), soft_wrap=True)


def submission(
    records: RecordPaths,
    out: Annotated[Path, typer.Option(help="Folder of the tree; must not exist.")],
    submitter: Annotated[str, typer.Option(help="The organisation that submits.")],
    division: Annotated[str, typer.Option(help="closed, open or network.")] = "closed",
    system: Annotated[str | None, typer.Option(help="The system's name; by default made of what it has.")] = None,
) -> None:
    """Write the tree that MLCommons' submission checker wants, and list what is missing in it."""
    _need_extra()
    from .submission import write_submission

    missing = write_submission(records, out, submitter=submitter, division=division, system=system)
    console.print(f"submission tree  {out}", soft_wrap=True)
    for each in missing:
        console.print(f"  missing: {each}", style="yellow", soft_wrap=True, markup=False)


def report(
    record: RecordPath,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; by default within the record.")] = None,
) -> None:
    """Write one page and PNGs out of a run record."""
    _need_extra()
    from .report import write_report

    console.print(f"report  {write_report(record, out)}", soft_wrap=True)


def _need_extra() -> None:
    """
    Raises:
        StateError: the libraries of the `bench` extra are not there.
    """
    missing = [name for name in ("mlperf_loadgen", "pandas", "matplotlib", "scipy") if find_spec(name) is None]
    if missing:
        raise StateError(f"{', '.join(missing)} is needed here: install nfold with its extra, `nfold[bench]`")


def _home() -> Path:
    return Settings.from_environment().home
