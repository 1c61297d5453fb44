"""How often `nfold verify` is wrong, over synthetic pairs of records at known differences.

    python benchmarks/verdict_errors.py [--pairs 200] [--repeats 5] [--spread 0.5] [--margin 2.0]

Each pair has so many repeats at two sites, log-normal around figures that differ by a known share; the verdict is
wrong when it says `reproduced` beyond the margin, or `not reproduced` within it; at the margin itself both are. As
`inconclusive` is never wrong, its share is printed too. No engine runs. Last line: JSON.
"""

import argparse
import json

import numpy as np
from nfold.cluster.bench.equivalence import Verdict, compare, whole_verdict

# Shares of the margin.
DIFFERENCES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0)


def verdicts(
    pairs: int, repeats: int, spread: float, margin: float, difference: float, seed: int
) -> dict[Verdict, float]:
    """Share of each verdict. Both measures of a verdict differ alike: the figure, and the slowest node's share.

    Args:
        spread: standard deviation of repeats, as a share.
        difference: true ratio less one.
    """
    random = np.random.default_rng(seed)
    counts = dict.fromkeys(Verdict, 0)
    for _ in range(pairs):
        measures = []
        for _ in range(2):
            there = np.exp(random.normal(0.0, spread, repeats))
            here = np.exp(random.normal(np.log1p(difference), spread, repeats))
            measures.append(compare(there.tolist(), here.tolist(), margin))
        counts[whole_verdict(measures)[0]] += 1
    return {verdict: count / pairs for verdict, count in counts.items()}


def wrong_share(shares: dict[Verdict, float], share_of_margin: float) -> float:
    """At the margin itself both are wrong: neither may be said with certainty."""
    beyond = shares[Verdict.REPRODUCED] if share_of_margin >= 1.0 else 0.0
    within = shares[Verdict.NOT_REPRODUCED] if share_of_margin <= 1.0 else 0.0
    return max(beyond, within)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--spread", type=float, default=0.5, help="of the repeats, percent")
    parser.add_argument("--margin", type=float, default=2.0, help="percent")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    margin, rows = args.margin / 100, []
    print(f"{args.pairs} pairs each, {args.repeats} repeats, spread {args.spread} %, margin ±{args.margin} %")
    print("true difference   reproduced  not reproduced  inconclusive   wrong")
    for number, share in enumerate(DIFFERENCES):
        found = verdicts(args.pairs, args.repeats, args.spread / 100, margin, share * margin, args.seed + number)
        wrong = wrong_share(found, share)
        rows.append(
            {"difference": share * margin, "wrong": wrong} | {str(key): value for key, value in found.items()}
        )
        shown = [found[each] for each in (Verdict.REPRODUCED, Verdict.NOT_REPRODUCED, Verdict.INCONCLUSIVE)]
        print(f"{share * margin:15.2%}  {shown[0]:11.1%} {shown[1]:15.1%} {shown[2]:13.1%} {wrong:7.1%}")
    worst = max(float(row["wrong"]) for row in rows)
    print(f"most often wrong: {worst:.1%} of the pairs at one difference")
    head = {"benchmark": "verdict_errors", "pairs": args.pairs, "repeats": args.repeats, "worst_error_rate": worst}
    print(json.dumps(head | {"spread": args.spread / 100, "margin": margin, "differences": rows}))


if __name__ == "__main__":
    main()
