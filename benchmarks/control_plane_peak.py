"""peak: how many queries/s one router process carries."""

import argparse
from math import ceil

from control_plane_fleet import ACCELERATORS_PER_NODE, num_cores, start_fleet
from control_plane_report import Goal, print_goals, what_is_full
from control_plane_runs import Figures, Times, arrive
from control_plane_scenarios import ACCELERATOR, MODEL_PROFILE, print_cpu, print_latencies, scenario_config
from nfold.cluster.service import Progress
from nfold.models.engine.simulated.profile import load_profile
from nfold.models.errors import OverloadedError, UnavailableError

PEAK_QUERIES = 20_000.0
PEAK_STEPS = (0.2, 0.6, 1.0, 1.4, 1.8, 2.2, 2.6, 3.0)
PEAK_ADDED_MS = 100.0
# Short, so that few engines are needed: the path's work for a query does not depend on its length, but for bytes.
PEAK_PROMPT_TOKENS, PEAK_ANSWER_TOKENS = 64, 8
# Of an engine's time that queries take. With less, the engines make many steps for few tokens; above the most, they
# and not the router would be measured.
PEAK_ENGINE_SHARE = 0.8
MAX_ENGINE_SHARE = 0.9


def peak(args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """More and more queries/s with short answers, each rate on as many engines as it keeps busy, until the control
    plane adds over 100 ms at p99."""
    query_s = engine_s_per_query()
    goal = PEAK_ENGINE_SHARE / query_s * args.accelerators if args.quick else PEAK_QUERIES
    tried: list[Figures] = []
    best: Figures | None = None
    held, stopped = 0.0, "all rates were held"
    rates = [goal] if args.quick else [PEAK_QUERIES * step for step in PEAK_STEPS]
    for rate in [args.queries] if args.queries else rates:
        num_nodes = ceil(rate * query_s / PEAK_ENGINE_SHARE / ACCELERATORS_PER_NODE)
        count = args.accelerators or ACCELERATORS_PER_NODE * num_nodes
        if (share := rate * query_s / count) > MAX_ENGINE_SHARE:
            stopped = f"{rate:,.0f} queries/s would take {share:.0%} of the engines' time; use more of them"
            break
        try:
            figures = _arrive(args, rate, count, progress)
        except (OverloadedError, UnavailableError) as error:
            stopped = f"at {rate:,.0f} queries/s the router refuses: {str(error)[:200]}"
            break
        tried.append(figures)
        print_latencies(figures)
        added = figures["added_ttft_p99_ms"]
        if added is None or added > PEAK_ADDED_MS:
            shown = "over the run's end" if added is None else f"{added:,.0f} ms"
            full = what_is_full(figures, num_cores())
            stopped = f"at {rate:,.0f} queries/s the control plane adds {shown} at p99"
            stopped += f"; {full}" if full else ""
            break
        best, held = figures, figures["offered_queries_per_s"] or 0.0
    print_goals(
        f"Peak, {ACCELERATOR}, {PEAK_PROMPT_TOKENS} tokens in and {PEAK_ANSWER_TOKENS} out, one router process",
        [Goal("queries/s", held, goal, note="published heads: about 4,000")],
    )
    print(f"  {stopped}")
    if not tried:
        raise SystemExit("no rate could be tried")
    chosen: Figures = best or tried[-1]
    print_cpu(chosen)
    return {
        "efficiency": chosen["share_of_offered"],
        "stopped": stopped,
        "held": best is not None,
        **chosen,
        "queries_per_s": held,
        "tried": tried,
    }


def _arrive(args: argparse.Namespace, rate: float, count: int, progress: Progress) -> Figures:
    times = Times(args.warmup or 6.0, args.seconds or 10.0)
    with start_fleet(scenario_config(args, count, "server"), progress) as fleet:
        progress(f"{rate:,.0f} queries/s on {count} accelerators")
        figures = arrive(
            fleet,
            fleet.replicas,
            rate,
            times,
            progress,
            seed=args.seed,
            prompt_tokens=PEAK_PROMPT_TOKENS,
            answer_tokens=PEAK_ANSWER_TOKENS,
            warm=False,
        )
    return {"accelerators": count, **figures}


def engine_s_per_query() -> float:
    """Of an engine's time, for a query with a short answer, beyond what steps take anyway."""
    profile = load_profile(f"{ACCELERATOR}--{MODEL_PROFILE}")
    curve = profile.curve
    return PEAK_PROMPT_TOKENS * curve.prefill_token_s + PEAK_ANSWER_TOKENS * curve.decode_token_s
