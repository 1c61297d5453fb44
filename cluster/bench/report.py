"""`nfold report`: one self-contained page and PNGs out of a run record."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..latency import Percentiles
from .charts import charts_of
from .published_beside import published_beside
from .record import RunRecord, headline
from .record_store import open_record, record_hash

PAGE = "index.html"


def write_report(path: Path, out: Path | None = None) -> Path:
    """
    Args:
        path: a record's folder or archive.
        out: where page and PNGs go; None takes a folder `report` in the record, beside the archive otherwise.

    Returns:
        The page.

    Raises:
        StateError: see `open_record`.
    """
    with open_record(path) as (record, directory):
        target = out or (path / "report" if path.is_dir() else path.with_name(f"{path.stem}-report"))
        target.mkdir(parents=True, exist_ok=True)
        charts = charts_of(record, directory)
        for chart in charts:
            (target / f"{chart.name}.png").write_bytes(chart.png)
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
        )
        page = environment.get_template("report.html.j2").render(
            record=record,
            title=headline(record),
            tiles=_tiles(record),
            charts=charts,
            published=published_beside(record),
            facts=_facts(record),
            figure=lambda value: _figure(record, value),
            ms=_ms,
            digest=record_hash(directory),
        )
        (target / PAGE).write_text(page)
        return target / PAGE


def _figure(record: RunRecord, value: float) -> str:
    return f"{value:,.3f}" if record.unit == "s" else f"{value:,.0f}"


def _ms(percentiles: Percentiles | None) -> str:
    if percentiles is None:
        return "–"
    value = percentiles.p99 * 1e3
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _tiles(record: RunRecord) -> list[tuple[str, str]]:
    point, run = record.whole, record.whole.typical
    simulated = " (simulated)" if record.simulated else ""
    found = [(_figure(record, point.median), f"{record.unit}{simulated}, median of {len(point.figures)}")]
    if run.ledger is not None and run.ledger.efficiency is not None:
        found.append((f"{run.ledger.efficiency:.1%}", f"scaling efficiency{simulated}"))
    found.append((str(point.num_accelerators), f"x {record.model.accelerator} on {point.num_nodes} nodes"))
    if record.accuracy is not None:
        found.append(("passed" if record.accuracy.passed else "NOT passed", f"accuracy ({record.accuracy.metric})"))
    else:
        found.append(("none", "accuracy run"))
    verdict = "VALID" if all(each.counts for each in point.runs) else "INVALID"
    found.append((verdict, "says LoadGen"))
    return found


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    settings, run = record.loadgen.settings, record.whole.typical
    found = [
        ("samples", f"{record.workload.num_samples:,} of {record.workload.data_set}"),
        ("samples' hash", record.workload.digest[:16]),
        ("queries", f"{run.num_queries:,} in {run.duration_s:,.1f} s"),
        ("target", "–" if run.target_qps is None else f"{run.target_qps:,.2f} queries/s"),
        ("seeds", ", ".join(str(settings[name]) for name in settings if name.endswith("_rng_seed"))),
        ("model", f"{record.model.name}, {record.model.engine} engine, tp {record.model.tp}"),
        ("weights", f"{record.model.weights[:16]} ({record.model.weights_name})"),
        ("nodes", ", ".join(f"{node.name}: {node.healthy}" for node in record.nodes)),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.provenance.versions.items())),
    ]
    for host in record.hosts:
        parts = [
            host.cpu,
            f"{host.num_cores} cores",
            f"{host.memory_bytes / 2**30:.0f} GiB",
            host.system,
            host.kernel,
        ]
        parts += [f"{count} x {model}" for model, count in host.accelerators.items()]
        parts += [
            f"{what} {value}" for what, value in (("driver", host.driver), ("runtime", host.runtime)) if value
        ]
        found.append((f"host {host.host}", ", ".join(parts)))
    if record.accuracy is not None:
        scores = ", ".join(f"{name} {score:.4f}" for name, score in record.accuracy.scores.items())
        found.append(
            ("accuracy", f"{scores} over {record.accuracy.num_samples} samples; gate: {record.accuracy.gate}")
        )
    if record.baseline is not None:
        kept = record.baseline
        found.append(("baseline", f"{kept.tokens_per_s:,.0f} tokens/s on {kept.node}, {kept.date}"))
    return found
