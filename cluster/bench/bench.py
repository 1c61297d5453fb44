"""A bench from start to record: accuracy, then performance on each number of nodes. Import only when connected."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ...deployments import discovery
from ...deployments.addresses import ReplicaAddress, ServiceKeys
from ...models.engine.simulated.profile import load_profile
from ...models.errors import StateError
from ...models.tokenizer import Tokenizer
from ..baseline import Baseline, keep_baseline, load_baseline
from ..config import NfoldConfig
from ..measuring import replicas_of, weights_of
from ..provenance import provenance
from ..published import node_names
from ..service import served_model
from .accounting import baseline_facts, baseline_key, baseline_of, ledger_of
from .accuracy import judge, read_answers
from .client import ClientJob, ClientResult
from .client_process import run_in_process
from .figures import keep_distributions, run_figures
from .loadgen_log import read_log
from .order import BenchOrder
from .peak import find_peak
from .record import (
    AccuracyFacts,
    LoadgenFacts,
    ModelFacts,
    Point,
    RunFigures,
    RunRecord,
    WorkloadFacts,
    departures_of,
)
from .record_store import archive_path, seal
from .roofline import measure_roofline
from .samples import SampleSet
from .settings import Asked, RunSettings, loadgen_version, run_settings
from .topology import nodes_of, topology
from .workload import BenchWorkload, ServedModel, make_workload

Progress = Callable[[str], None]

WARMUP_S = 10.0
# Of the rate that the warm-up showed at full slots: Server needs room for its latencies.
SERVER_SHARE = 0.7
OFFLINE_SHARE = 1.15
# Of the rate of a published single node, for simulated ones.
SIMULATED_SERVER_SHARE = 0.95


def run_bench(
    config: NfoldConfig,
    home: Path,
    model: str,
    order: BenchOrder,
    directory: Path | None = None,
    progress: Progress = lambda line: None,
) -> tuple[RunRecord, Path]:
    """Run `order` on the service that this process is connected to.

    Args:
        directory: where the record goes; None takes a fresh folder below `home`.

    Returns:
        The record and its folder; the archive lies beside it.

    Raises:
        NfoldError: why there is no record; what was measured until then is removed.
    """
    bench = _Bench(config, home, model, order, progress)
    target = directory or _fresh_directory(home, bench.workload, order)
    if target.exists() and any(target.iterdir()):
        raise StateError(f"{target} is not empty; a record needs a folder of its own")
    target.mkdir(parents=True, exist_ok=True)
    try:
        return bench.run(target), target
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        archive_path(target).unlink(missing_ok=True)
        raise


def _fresh_directory(home: Path, workload: BenchWorkload, order: BenchOrder) -> Path:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    return home / "records" / f"{workload.rules.name}-{order.scenario}-{now}"


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some nodes of the service.

    Attributes:
        nodes: node of each replica.
    """

    replicas: tuple[ReplicaAddress, ...]
    nodes: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        return sorted(set(self.nodes.values()))


class _Bench:
    def __init__(self, config: NfoldConfig, home: Path, model: str, order: BenchOrder, progress: Progress) -> None:
        served = served_model(config, model)
        self._home = home
        self._order = order
        self._progress = progress
        self._replicas = replicas_of(config, model)
        self._service = config.name
        self._keys: ServiceKeys | None = discovery.service_keys(config.name)
        self._nodes = nodes_of(self._replicas, node_names())
        first = self._replicas[0]
        self._model = ServedModel.of(served.directory, first.settings, first.max_model_len)
        progress("preparing the samples")
        self.workload = make_workload(
            order.workload,
            self._model,
            data=order.data,
            accuracy_data=order.accuracy_data,
            num_samples=order.num_samples,
        )
        self._weights, self._weights_name = weights_of(served, first)
        self._decode = None if self._model.simulated else Tokenizer.load(served.directory).decode
        self._settings = self._run_settings(self.workload.performance)
        self._key = baseline_key(first, self.workload.rules, order.scenario)

    def run(self, target: Path) -> RunRecord:
        parts, baseline = self._parts()
        accuracy, no_accuracy = self._accuracy(target)
        points: list[Point] = []
        for part in parts:
            point, fresh = self._point(part, target, baseline, len(parts[-1].replicas))
            points.append(point)
            baseline = baseline or fresh
        nodes, hosts = topology(self._replicas, self._nodes)
        first, samples = self._replicas[0], self.workload.performance
        (target / "user.conf").write_text(self._order.user_conf.text or self._user_conf(points[-1]))
        record = RunRecord(
            workload=WorkloadFacts(
                asked=self._order.workload,
                name=self.workload.rules.name,
                scenario=self._order.scenario,
                official=self.workload.rules.official,
                data_set=samples.name,
                source=samples.source,
                synthetic=samples.synthetic,
                digest=samples.digest,
                num_samples=len(samples),
                mean_prompt_tokens=samples.mean_prompt_tokens,
                data_file=None if self._order.data is None else self._order.data.name,
            ),
            loadgen=LoadgenFacts(
                version=loadgen_version(),
                key=self._settings.key,
                settings=self._settings.values,
                user_conf=self._order.user_conf.text,
            ),
            model=ModelFacts(
                name=first.model,
                weights=self._weights,
                weights_name=self._weights_name,
                engine=first.engine,
                accelerator=first.accelerator,
                tp=first.tp,
                settings=first.settings,
            ),
            hosts=hosts,
            nodes=nodes,
            provenance=provenance(),
            simulated=self._model.simulated,
            departures=departures_of(
                self._settings.departures,
                samples.synthetic,
                self._model.simulated,
                first.settings,
            ),
            warmup_s=self._warmup_s,
            points=points,
            accuracy=accuracy,
            no_accuracy=no_accuracy,
            baseline=None if baseline is None else baseline_facts(baseline),
        )
        seal(record, target)
        return record

    @property
    def _warmup_s(self) -> float:
        return WARMUP_S if self._order.warmup_s is None else self._order.warmup_s

    def _parts(self) -> tuple[list[_Part], Baseline | None]:
        """The nodes of each point, and the baseline that is kept already."""
        names = sorted(set(self._nodes.values()), key=lambda name: (-list(self._nodes.values()).count(name), name))
        counts = self._order.nodes
        kept: Baseline | None = None
        why = ""
        try:
            kept = load_baseline(self._key, self._home, weights=self._weights, settings=self._replicas[0].settings)
        except StateError as error:
            why = str(error).partition(";")[0]
        if counts is None:
            alone = kept is not None or self._order.without_baseline
            counts = (len(names),) if alone else tuple(sorted({1, len(names)}))
        if counts[-1] > len(names):
            raise StateError(f"{counts[-1]} nodes were asked for; {len(names)} have replicas of {self._key.model}")
        if kept is None and 1 not in counts and not self._order.without_baseline:
            raise StateError(f"{why}. Put 1 among --nodes, or give --without-baseline to go without efficiency")
        return [self._part(names[:count]) for count in counts], None if 1 in counts else kept

    def _part(self, names: Sequence[str]) -> _Part:
        chosen = tuple(replica for replica in self._replicas if self._nodes[replica.replica_id] in names)
        return _Part(replicas=chosen, nodes={each.replica_id: self._nodes[each.replica_id] for each in chosen})

    def _run_settings(self, samples: SampleSet, *, accuracy: bool = False, probing: bool = False) -> RunSettings:
        order = self._order
        asked = Asked(
            target_qps=order.target_qps,
            min_duration_s=order.probe_s if probing else order.min_duration_s,
        )
        return run_settings(
            self.workload.rules, order.scenario, len(samples), order.user_conf, asked, accuracy=accuracy
        )

    def _point(
        self, part: _Part, target: Path, baseline: Baseline | None, num_whole: int
    ) -> tuple[Point, Baseline | None]:
        settings, auto = self._targeted(self._settings, part, num_whole)
        if self._order.find_peak and self._order.scenario.is_server:
            settings, auto = self._at_peak(part, num_whole), None
        name = f"{len(part.names)}-node{'s' if len(part.names) > 1 else ''}"
        self._progress(f"{name}: the client's own limit, against a stub")
        roofline = self._roofline(settings, part)
        results: list[ClientResult] = []
        makes_baseline = baseline is None and len(part.names) == 1
        for number in range(1, self._order.repeats + 1):
            job = self._job(part, settings, target / name / f"run-{number}", auto)
            job = replace(job, loads_little=makes_baseline and not self._order.scenario.lower_is_better)
            told = f"{name}, run {number} of {self._order.repeats}"
            results.append(run_in_process(job, lambda line, told=told: self._progress(f"{told}: {line}")))
            # Later repeats aim where the first did, so that all are of one load.
            settings, auto = results[0].settings, None
            keep_distributions(results[-1], job.log_dir)
        fresh = None
        if makes_baseline:
            fresh = baseline_of(self._key, part.replicas, part.names[0], results)
            fresh = fresh.model_copy(update={"weights": self._weights, "weights_name": self._weights_name})
        runs = [
            self._figures(result, roofline, baseline or fresh, f"{name}/run-{number}", target)
            for number, result in enumerate(results, 1)
        ]
        if fresh is not None and not any(run.void for run in runs):
            keep_baseline(fresh, self._home)
        return Point(nodes=part.names, num_accelerators=sum(each.tp for each in part.replicas), runs=runs), fresh

    def _figures(
        self, result: ClientResult, roofline: float, baseline: Baseline | None, logs: str, target: Path
    ) -> RunFigures:
        ledger = None if self._order.scenario.lower_is_better else ledger_of(result, baseline)
        return run_figures(read_log(target / logs), result, roofline, ledger, logs)

    def _targeted(self, settings: RunSettings, part: _Part, num_whole: int) -> tuple[RunSettings, float | None]:
        """Settings with the part's share of the load; the second says what share of the warm-up's rate is to be the
        target, when nobody named one."""
        if self._order.scenario.lower_is_better:
            return settings, None
        named = self._order.target_qps is not None or self._order.user_conf.settings(
            settings.key, settings.scenario.loadgen
        ).get("target_qps")
        if named:
            return settings.with_target(settings.target_qps * len(part.replicas) / num_whole), None
        if self._model.simulated and self.workload.rules.official:
            return settings.with_target(self._published_qps(part)), None
        return settings, SERVER_SHARE if settings.scenario.is_server else OFFLINE_SHARE

    def _published_qps(self, part: _Part) -> float:
        """What the profiles' published runs answered, of so many accelerators."""
        total = 0.0
        for replica in part.replicas:
            known = load_profile(str(replica.settings["profile"])).scenario(str(replica.settings["scenario"]))
            total += (known.figures["tokens_per_s"].value or 0.0) / known.run.tokens_per_sample
        return total * (SIMULATED_SERVER_SHARE if self._order.scenario.is_server else 1.0)

    def _at_peak(self, part: _Part, num_whole: int) -> RunSettings:
        """Settings at the highest load that keeps the limits, as short runs show it."""
        probing, auto = self._targeted(self._run_settings(self.workload.performance, probing=True), part, num_whole)
        if auto is not None:
            warm = self._job(part, probing, self._scratch, auto)
            probing = run_in_process(warm, self._progress).settings

        def keeps(qps: float) -> bool:
            job = self._job(part, probing.with_target(qps), self._scratch, None)
            told = f"looking for the peak, {qps:.2f} queries/s"
            run_in_process(job, lambda line: self._progress(f"{told}: {line}"))
            return read_log(self._scratch).valid

        try:
            peak, _ = find_peak(probing.target_qps, keeps)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        return self._settings.with_target(peak)

    @property
    def _scratch(self) -> Path:
        return self._home / "records" / ".probe"

    def _roofline(self, settings: RunSettings, part: _Part) -> float:
        one = part.replicas[0]
        rules, samples = self.workload.rules, self.workload.performance
        return measure_roofline(one.model, one.max_model_len, rules, samples, expected_qps=settings.target_qps)

    def _job(self, part: _Part, settings: RunSettings, log_dir: Path, auto: float | None) -> ClientJob:
        samples = self.workload.accuracy if settings.accuracy else self.workload.performance
        assert samples is not None
        return ClientJob(
            model=self._replicas[0].model,
            replicas=part.replicas,
            keys=self._keys,
            priors=tuple(discovery.list_speed_priors(self._service)),
            nodes=part.nodes,
            samples=samples,
            settings=settings,
            log_dir=log_dir,
            warmup_s=0.0 if settings.accuracy else self._warmup_s,
            auto_target=auto,
        )

    def _accuracy(self, target: Path) -> tuple[AccuracyFacts | None, str]:
        samples, gate = self.workload.accuracy, self.workload.rules.gate
        if not self._order.accuracy:
            return None, "none was asked for"
        if samples is None or gate is None:
            return None, self.workload.why_no_accuracy
        whole = self._part(sorted(set(self._nodes.values())))
        settings = self._run_settings(samples, accuracy=True)
        if settings.scenario.is_server and self._order.target_qps is None:
            # Nothing is timed, so the load need only be one that the service bears: it is found while warming up.
            job = replace(
                self._job(whole, settings, target / "accuracy", SERVER_SHARE), warmup_s=max(self._warmup_s, 2.0)
            )
        else:
            job = self._job(whole, settings, target / "accuracy", None)
        run_in_process(job, self._progress)
        log = read_log(job.log_dir)
        if log.errors:
            raise StateError(f"the accuracy run failed: {'; '.join(log.errors)}")
        assert self._decode is not None
        return judge(gate, samples, read_answers(job.log_dir), self._decode, "accuracy"), ""

    def _user_conf(self, point: Point) -> str:
        qps, name = point.typical.target_qps, self._settings.scenario.loadgen
        return "" if qps is None else f"{self._settings.key}.{name}.target_qps = {qps:g}\n"
