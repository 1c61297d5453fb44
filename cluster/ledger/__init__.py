"""The loss ledger: the gap between what is provisioned and what comes out, split into named losses. Pure.

    sum of baselines  =  measured  +  unhealthy + starting + draining      the accelerator does not serve
                                   +  no demand + starved + underfilled    it lacks work: none, elsewhere, no room
                                   +  slow step + recompute                it works, but slower or in vain
                                   +  control plane                        its work is not handed over
                                   +  unexplained                          all in output tokens/s

Replicas tell what their steps add up to (`deployments/step_account.py`); a baseline's yardstick says how long that
should have taken. `split` divides each replica's time, `reasons` says why work was lacking, `book` keeps windows.
"""

from .account import account, books_of, spans, spans_by_replica, tokens_per_s
from .book import Books, Place
from .columns import COLUMNS, UNEXPLAINED, Ledger, nothing_lost, total
from .counters import ModelCounters, Presence, ReplicaCounters, Span, span_between
from .curve import StepCurve, closest_curve, fit_curve
from .yardstick import Saturation, Yardstick, fit_saturation, overhead_token_s, yardstick_of

__all__ = [
    "COLUMNS",
    "UNEXPLAINED",
    "Books",
    "Ledger",
    "ModelCounters",
    "Place",
    "Presence",
    "ReplicaCounters",
    "Saturation",
    "Span",
    "StepCurve",
    "Yardstick",
    "account",
    "books_of",
    "closest_curve",
    "fit_curve",
    "fit_saturation",
    "nothing_lost",
    "overhead_token_s",
    "span_between",
    "spans",
    "spans_by_replica",
    "tokens_per_s",
    "total",
    "yardstick_of",
]
