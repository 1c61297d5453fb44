"""The loss ledger against losses of known size, each alone and in pairs: what was injected, what the ledger found.

    python benchmarks/ledger_injection.py [--accelerators 8 87] [--quick]   virtual time, simulated accelerators
    python benchmarks/ledger_injection.py --live                            real time: Ray, Serve, sockets, router
    python benchmarks/ledger_injection.py --engine native                   the real engine, in real time

Figures are percentage points of the sum of baselines. What is true of an injection:

    unhealthy, starting      the seconds out of service, at the baseline's rate
    starved                  the seconds of the overlooked replicas, at the baseline's rate, while others have work
    slow step                the seconds that the fault added to steps
    recompute                tokens computed twice, at the price of a prompt token
    one more column          what else the run lost against the same run without injections: that of the injection
                             which causes it; of two, by Shapley's rule (the mean over both orders), but beside
                             too little demand nothing else is lost unless requests wait

Of the real engine, what is lost against turns without the injection, see `ledger_injection_native.py`.

    max_error_points         of the injections' own columns
    max_wrong_column_points  of all other named columns
    max_unexplained_points   of what is left

Last line: JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from itertools import combinations
from math import inf
from pathlib import Path

import ledger_injection_virtual as virtual
from kept_results import keep
from ledger_injection_verdicts import (
    GOALS,
    INJECTIONS,
    NATIVE_GOALS,
    NATIVE_INJECTIONS,
    TAKES_REST,
    Case,
    Names,
    Verdict,
    judge,
    line_of,
    summary,
    verdict_of,
)
from nfold.cluster.ledger import COLUMNS, UNEXPLAINED, account, total

WORDS = {
    "slow_5": "one replica of eight 5 % slower",
    "slow_20": "one replica of eight 20 % slower",
    "half_slots": "one replica of eight with half its slots",
    "dead_node": "a node dies in the middle",
    "starved_pool": "a router overlooks two replicas of eight",
    "delay": "each hand-over takes seconds longer",
    "small_kv": "one replica of eight with a small KV cache",
    "no_demand": f"{virtual.OFFERED:.0%} of the load",
    "start_up": f"one replica of eight starts for {virtual.START_S:g} s",
}
Job = tuple[Names, int, virtual.Setup]


def measure(job: Job) -> Case:
    injections, num, setup = job
    found = virtual.run(injections, num, setup)
    yardstick = virtual.yardstick(setup)
    ledger = account(found.samples, {virtual.PROFILE: yardstick})
    assert ledger is not None, "replicas stood all the time"
    all_tokens = num * yardstick.tokens_per_s * found.window_s
    known = virtual.oracle(injections, num, setup, found)
    return Case(
        injections=injections,
        num=num,
        measured=100.0 * found.num_tokens / all_tokens,
        known={name: 100.0 * lost / all_tokens for name, lost in known.items()},
        found={name: 100.0 * ledger.share(name) for name in (*COLUMNS, UNEXPLAINED)},
        on_the_way_share=virtual.on_the_way_share(num, setup, found) if "delay" in injections else 0.0,
    )


def run_live(args: argparse.Namespace, tell: Callable[[str], None]) -> list[Verdict]:
    """Phase by phase; an injection that goes on loses what it lost in its first phase."""
    import ledger_injection_live as live

    num = args.accelerators[0]
    found = live.run_live(num, args.port, tell)
    rate = num * found.yardstick.tokens_per_s
    clean = found.phases[0].tokens_per_s
    verdicts: list[Verdict] = []
    rests: dict[str, float] = {}
    for phase in found.phases:
        ledger = account(phase.samples, {found.yardstick_name: found.yardstick})
        assert ledger is not None, "replicas stood all the time"
        all_tokens = rate * phase.window_s
        known = {name: 100.0 * lost / all_tokens for name, lost in live.known_losses(found, phase).items()}
        lost = 100.0 * (clean - phase.tokens_per_s) / rate
        true = dict.fromkeys(COLUMNS, 0.0) | known
        # The engine died before the window, so nothing of what it had goes on in it.
        takers = [name for name in phase.injections if name in TAKES_REST and name != "dead_node"]
        for name in takers:
            rests.setdefault(name, lost - sum(known.values()))
            true[INJECTIONS[name][-1]] += rests[name]
        columns = {name: 100.0 * ledger.share(name) for name in (*COLUMNS, UNEXPLAINED)}
        verdicts.append(verdict_of(phase.injections, num, true, columns))
        tell(line_of(verdicts[-1]))
    return verdicts


def run_native(args: argparse.Namespace, tell: Callable[[str], None]) -> list[Verdict]:
    import ledger_injection_native as native

    verdicts: list[Verdict] = []
    for run in native.run_native(args.turns, tell):
        accounts = [account(samples, {run.yardstick_name: run.yardstick}) for samples in run.turns]
        ledger = total(each for each in accounts if each is not None)
        assert ledger is not None, "the replicas stood all the time"
        all_tokens = run.num_replicas * run.yardstick.tokens_per_s * run.window_s
        known = {column: 100.0 * lost / all_tokens for column, lost in native.known_losses(run).items()}
        hit, *others = (100.0 * lost / all_tokens for lost in run.lost)
        true = dict.fromkeys(COLUMNS, 0.0) | known
        # Without an injection all replicas are as the others: slower or faster with the machine.
        cause = NATIVE_INJECTIONS[run.injections[0]][-1] if run.injections else "slow step"
        true[cause] += hit - sum(known.values())
        true["slow step"] += sum(others)
        columns = {column: 100.0 * ledger.share(column) for column in (*COLUMNS, UNEXPLAINED)}
        verdicts.append(verdict_of(run.injections, run.num_replicas, true, columns))
        tell(line_of(verdicts[-1]))
    return verdicts


def run_virtual(args: argparse.Namespace, tell: Callable[[str], None]) -> list[Verdict]:
    pairs = [pair for pair in combinations(INJECTIONS, 2) if pair != ("slow_5", "slow_20")]
    chosen: list[Names] = [(), *((name,) for name in INJECTIONS), *([] if args.singles else pairs)]
    setup = virtual.Setup(args.warmup, args.warmup + args.window)
    store = CaseStore(args.cases, setup)
    verdicts: list[Verdict] = []
    stop_s = time.monotonic() + args.stop_after
    with ProcessPoolExecutor(args.processes) as pool:
        for num in args.accelerators:
            tell(f"{num} simulated accelerators, virtual time, {args.window:g} s each")
            todo = [(names, num, setup) for names in chosen if (names, num) not in store.cases]
            for done in as_completed([pool.submit(measure, job) for job in todo]):
                store.add(done.result())
                if time.monotonic() > stop_s:
                    pool.shutdown(cancel_futures=True)
                    raise SystemExit(f"stopped with {len(store.cases)} cases kept; the same command goes on")
            clean = store.cases[(), num]
            cases = {names: store.cases[names, num].against(clean) for names in chosen}
            rests = {names: case.rest for names, case in cases.items()}
            for case in cases.values():
                verdicts.append(judge(case, rests))
                tell(line_of(verdicts[-1]))
    return verdicts


class CaseStore:
    """Cases of one set-up that are done, kept in a file if there is one, as JSON lines."""

    def __init__(self, path: Path | None, setup: virtual.Setup) -> None:
        self.cases: dict[tuple[Names, int], Case] = {}
        self._path, self._setup = path, asdict(setup)
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            kept = json.loads(line)
            if kept.pop("setup") == self._setup:
                self._remember(Case(**kept | {"injections": tuple(kept["injections"])}))

    def add(self, case: Case) -> None:
        self._remember(case)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(case) | {"setup": self._setup}) + "\n")

    def _remember(self, case: Case) -> None:
        self.cases[case.injections, case.num] = case


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerators", type=int, nargs="+", default=[8, 87])
    parser.add_argument("--window", type=float, default=240.0, help="virtual seconds in the ledger")
    parser.add_argument("--warmup", type=float, default=60.0, help="virtual seconds before")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cases", type=Path, help="a file: keeps cases that are done, and goes on from there")
    parser.add_argument("--stop-after", type=float, default=inf, help="seconds; what is begun is ended, not kept")
    parser.add_argument("--singles", action="store_true", help="no pairs")
    parser.add_argument("--quick", action="store_true", help="8 accelerators, no pairs")
    parser.add_argument("--engine", choices=("simulated", "native"), default="simulated")
    parser.add_argument("--turns", type=int, default=8, help="of the real engine, with and without each injection")
    parser.add_argument("--live", action="store_true", help="real time, the first of --accelerators; six minutes")
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    parser.add_argument(
        "--port", type=int, default=8770, help="of the live service's API; the metrics' is the next"
    )
    args = parser.parse_args(arguments)
    if args.quick:
        args.accelerators, args.singles = [8], True
    return args


def main() -> None:
    args = parse()

    def tell(text: str) -> None:
        print(text, flush=True)

    is_simulated = args.engine == "simulated"
    clock = "real" if args.live or not is_simulated else "virtual"
    what = "SIMULATED" if is_simulated else "the real engine"
    tell(f"true > found, in points of the sum of baselines; {what}, {clock} time")
    if clock == "virtual":
        for name, words in WORDS.items():
            tell(f"  {name:14}{words}")
    from nfold.cluster.provenance import provenance

    run = run_native if not is_simulated else run_live if args.live else run_virtual
    verdicts = run(args, tell)
    found = summary(verdicts)
    goals = GOALS if is_simulated else NATIVE_GOALS
    for name, goal in goals.items():
        tell(f"{name} {found[name]:.2f} (goal {goal:g})")
    line = {"benchmark": "ledger_injection", "simulated": is_simulated, "time": clock, **found}
    details = {"goals": goals, "cases": [asdict(verdict) for verdict in verdicts]}
    line |= details | {"provenance": provenance().model_dump()}
    keep(name_of(args), line, args.keep)
    print(json.dumps(line))


def name_of(args: argparse.Namespace) -> str:
    """Of the kept result: what was run, without its settings."""
    if args.engine == "native":
        return "ledger_injection-native"
    size = "-".join(str(num) for num in args.accelerators[: 1 if args.live else None])
    return f"ledger_injection-{'live-' if args.live else ''}{size}{'-singles' if args.singles else ''}"


if __name__ == "__main__":
    main()
