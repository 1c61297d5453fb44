"""A million tokens per second through the control plane: published runs rehearsed in real time, simulated.

    python benchmarks/control_plane.py offline|server|interactive|peak|rival|mixed|growth|streams
        [--accelerators N] [--seconds S] [--warmup S] [--quick]

Ray, Serve, the replicas' data path and the router are the real ones; engines take the time that a profile fitted to
published single-node results says. The router is driven in this process. What is measured:

    tokens_per_s       output tokens that came to the router in the window
    efficiency         offline, growth: of N x one accelerator through the same path; mixed: of the sum of the nodes
                       alone; server, interactive, peak: of the offered tokens
    added_ttft_p99_ms  p99 of TTFT from when requests were due, less the same of a replay in virtual time, where the
                       same requests reach the same engines at once and tokens are seen when their step is due. It
                       has the way both ways, waits because a step was just missed, and what the router's choice
                       is better or worse than the least busy engine
    *_cpu_s_per_million_tokens  router: this process, its load generator included; engine: the engines' hosts, with
                        what the simulation itself costs

Last line: JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import control_plane_scenarios as scenarios
from control_plane_growth import growth
from control_plane_mixed import mixed
from control_plane_peak import peak
from control_plane_rival import rival
from control_plane_streams import streams
from kept_results import keep
from nfold.cluster.service import Progress
from nfold.models.errors import NfoldError

Measurement = Callable[[argparse.Namespace, Progress], dict[str, object]]

MEASUREMENTS: dict[str, Measurement] = {
    "offline": scenarios.offline,
    "server": scenarios.server,
    "interactive": scenarios.interactive,
    "peak": peak,
    "rival": rival,
    "mixed": mixed,
    "growth": growth,
    "streams": streams,
}
COMMON = (
    *("tokens_per_s", "efficiency", "added_ttft_p99_ms", "queries_per_s"),
    *("router_cpu_s_per_million_tokens", "engine_cpu_s_per_million_tokens"),
)
QUICK = {"accelerators": 8, "seconds": 5.0, "warmup": 5.0, "singles": 2}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """`--quick` fills in what is not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=sorted(MEASUREMENTS))
    parser.add_argument("--accelerators", type=int, help="of one kind; default: what was published")
    parser.add_argument("--seconds", type=float, help="the window; mixed: of work in its Offline part")
    parser.add_argument("--warmup", type=float, help="seconds before the window")
    parser.add_argument("--queries", type=float, help="queries/s; default: what was published, by accelerators")
    parser.add_argument("--singles", type=int, default=None, help="accelerators measured alone; default: 8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=8750)
    parser.add_argument(
        "--quick", action="store_true", help="small and short: shows that it runs, measures nothing"
    )
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    args = parser.parse_args(arguments)
    for name, value in ({"singles": 8} if not args.quick else QUICK).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def line_of(name: str, found: dict[str, object], quick: bool) -> dict[str, object]:
    """The last line: the common figures first, None where a measurement has none."""
    from nfold.cluster.provenance import provenance

    head = {"benchmark": "control_plane", "measurement": name, "simulated": True, "quick": quick}
    return head | {key: found.get(key) for key in COMMON} | found | {"provenance": provenance().model_dump()}


def main() -> None:
    args = parse()
    name = args.measurement
    print(f"{name}: simulated accelerators, real time", flush=True)
    try:
        found = MEASUREMENTS[name](args, lambda text: print(f"  {text}", flush=True))
    except NfoldError as error:
        sys.exit(f"{name}: {error}")
    line = line_of(name, found, args.quick)
    keep(f"control_plane-{name}", line, args.keep)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
