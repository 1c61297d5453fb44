"""How long answers will be, from those that a model has given: a decayed life table, by length of the prompt.

Per bin of lengths it counts the answers that ended there and those that came so far, running ones included: short
answers end first, so of those that have ended when all are young nearly all are short.

All that is asked follows from the survival S(e), the share of answers longer than e tokens, and its sum
from there on, R(e) = S(e) + S(e + 1) + ...:

    expected tokens, at most c             R(0) - R(c)
    expected remaining ones after e        (R(e) - R(c)) / S(e)
"""

import numpy as np
from numpy.typing import NDArray

from ..models.compiled import compiled, f64_table, f64s, i64s

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Lens = NDArray[np.integer]

# What is expected before answers were seen, and past the longest seen. It weighs as much as this many answers.
PRIOR_TOKENS = 256.0
PRIOR_WEIGHT = 0.05
# Answers after which one counts half: so many, and several generations of those that run side by side.
HALF_LIFE_ANSWERS = 2000.0
HALF_LIFE_GENERATIONS = 8.0
# Answers seen since the tables were made, in shares of all: then they are made anew.
_REFRESH_SHARE = 0.01
_BINS_PER_OCTAVE = 8
_NUM_OCTAVES = 20
_NUM_PROMPT_BUCKETS = 18


def _edges() -> F64:
    """0, 1, 2, ... and then eight to an octave: bin i holds the answers in (edges[i], edges[i + 1]]."""
    fine = 2.0 ** (np.arange(_NUM_OCTAVES * _BINS_PER_OCTAVE + 1) / _BINS_PER_OCTAVE)
    return np.unique(np.concatenate(([0.0], np.rint(fine))))


_EDGES = _edges()
_WIDTHS = np.diff(_EDGES)
_NUM_BINS = len(_WIDTHS)
_LEAST = 1e-300
_ANY_PROMPT = _NUM_PROMPT_BUCKETS  # the row of all prompts together


class LengthPrediction:
    """What one model's answers have been like."""

    def __init__(self) -> None:
        self._counts = np.zeros((_NUM_PROMPT_BUCKETS, _NUM_BINS))
        self._sums = np.zeros((_NUM_PROMPT_BUCKETS, _NUM_BINS))
        self._reached = np.zeros((_NUM_PROMPT_BUCKETS, _NUM_BINS))
        self._running = np.zeros((_NUM_PROMPT_BUCKETS, _NUM_BINS))
        self._num_running = 0
        self._weight = 0.0
        self._num_new = 0.0
        self._share = np.zeros(_NUM_PROMPT_BUCKETS)
        self._survival, self._rest = _tables(self._counts, self._sums, self._reached)

    def observe(self, prompt_lens: Lens, answer_lens: Lens) -> None:
        """Answers that ended, [N] each. Leave out those that could not end by themselves: they tell nothing."""
        count = len(answer_lens)
        if count == 0:
            return
        keep = 0.5 ** (count / max(HALF_LIFE_ANSWERS, HALF_LIFE_GENERATIONS * self._num_running))
        self._counts *= keep
        self._sums *= keep
        self._reached *= keep
        lens = np.clip(answer_lens, 1, _EDGES[-1])
        cells = _bucket(prompt_lens) * _NUM_BINS + np.searchsorted(_EDGES, lens) - 1
        counts = _histogram(cells)
        self._counts += counts
        self._sums += _histogram(cells, lens)
        self._reached += _sum_from_right(counts)
        self._weight = self._weight * keep + count
        self._num_new += count

    def watch(self, prompt_lens: Lens, emitted: Lens) -> None:
        """All answers that have begun and go on, [N], as far as they have come. To be called again and again."""
        lens = np.minimum(emitted, _EDGES[-2])
        bins = np.searchsorted(_EDGES, lens, side="right") - 1
        cells = _bucket(prompt_lens) * _NUM_BINS + bins
        here = _histogram(cells)
        running = _sum_from_right(here) - here + _histogram(cells, (lens - _EDGES[bins]) / _WIDTHS[bins])
        # What they had reached before was counted then, and has decayed as the ends of others of that time have.
        self._reached += running - self._running
        self._running, self._num_running = running, len(emitted)
        self._num_new = np.inf

    def expected(self, prompt_lens: Lens, max_tokens: Lens) -> F64:
        """[N] tokens expected of answers to prompts of these lengths, at most `max_tokens` each."""
        return self.remaining(prompt_lens, np.zeros(len(prompt_lens), np.int64), max_tokens)

    def remaining(self, prompt_lens: Lens, emitted: Lens, max_tokens: Lens) -> F64:
        """[N] tokens expected after those already emitted, at least 1 and at most what `max_tokens` leaves."""
        self._refresh()
        prompt_lens, emitted, max_tokens = (
            np.ascontiguousarray(array, np.int64) for array in (prompt_lens, emitted, max_tokens)
        )
        return _remaining(prompt_lens, emitted, max_tokens, self._survival, self._rest, self._share, _EDGES)

    def longest_of(self, num_answers: float, max_tokens: int) -> float:
        """Tokens that of so many answers about one exceeds, at most `max_tokens`."""
        self._refresh()
        longest = np.interp(-1.0 / max(num_answers, 1.0), -self._survival[_ANY_PROMPT], _EDGES)
        return min(float(longest), float(max_tokens))

    def _refresh(self) -> None:
        if self._num_new <= _REFRESH_SHARE * self._weight:
            return
        self._num_new = 0.0
        self._survival, self._rest = _tables(self._counts, self._sums, self._reached)
        self._share = _share_of_bucket(self._counts, self._sums)


def _bucket(prompt_lens: Lens) -> I64:
    """One per octave."""
    return np.minimum(np.log2(np.maximum(prompt_lens, 1)).astype(np.int64), _NUM_PROMPT_BUCKETS - 1)


@compiled(i64s, i64s, i64s, f64_table, f64_table, f64s, f64s)
def _remaining(
    prompt_lens: I64, emitted: I64, max_tokens: I64, survival: F64, rest: F64, share: F64, edges: F64
) -> F64:
    """See `LengthPrediction.remaining`; `survival` and `rest` as `_tables` makes them, linear between edges."""
    remaining = np.empty(len(prompt_lens))
    any_prompt, last = len(share), len(edges) - 2
    for i in range(len(remaining)):
        begin = min(float(emitted[i]), edges[last])
        end = min(max(float(max_tokens[i]), begin), edges[last + 1])
        first_bin = np.searchsorted(edges, begin, side="right") - 1
        end_bin = min(np.searchsorted(edges, end, side="right") - 1, last)
        first_part = (begin - edges[first_bin]) / (edges[first_bin + 1] - edges[first_bin])
        end_part = (end - edges[end_bin]) / (edges[end_bin + 1] - edges[end_bin])
        bucket = min(int(np.log2(max(prompt_lens[i], 1))), any_prompt - 1)
        expected = 0.0
        for row in (any_prompt, bucket):
            alive = survival[row, first_bin]
            alive += (survival[row, first_bin + 1] - alive) * first_part
            tokens = rest[row, first_bin] + (rest[row, first_bin + 1] - rest[row, first_bin]) * first_part
            tokens -= rest[row, end_bin] + (rest[row, end_bin + 1] - rest[row, end_bin]) * end_part
            tokens = min(tokens / max(alive, 1e-300), float(max(max_tokens[i] - emitted[i], 1)))
            expected = tokens if row == any_prompt else expected + share[bucket] * (tokens - expected)
        remaining[i] = max(expected, 1.0)
    return remaining


def _histogram(cells: I64, weights: NDArray[np.generic] | None = None) -> F64:
    """[buckets, bins]"""
    size = _NUM_PROMPT_BUCKETS * _NUM_BINS
    counts = np.bincount(cells, weights, size).astype(np.float64)
    return counts.reshape(_NUM_PROMPT_BUCKETS, _NUM_BINS)


def _tables(counts: F64, sums: F64, reached: F64) -> tuple[F64, F64]:
    """S and R at the edges, [buckets + 1, bins + 1]; the last row is of all prompts. Exact at the edges when all
    answers have ended."""
    counts, sums, reached = (
        np.concatenate((part, part.sum(axis=0, keepdims=True))) for part in (counts, sums, reached)
    )
    longer = np.exp(-_EDGES / PRIOR_TOKENS)
    prior_sums = PRIOR_TOKENS * -np.diff(longer) + _EDGES[:-1] * longer[:-1] - _EDGES[1:] * longer[1:]
    counts = counts + PRIOR_WEIGHT * -np.diff(longer)
    sums = sums + PRIOR_WEIGHT * prior_sums
    reached = np.maximum(reached + PRIOR_WEIGHT * longer[:-1], np.maximum(counts, _LEAST))
    survival, rest = np.zeros((2, len(counts), _NUM_BINS + 1))
    survival[:, 0] = 1.0
    survival[:, 1:-1] = np.cumprod(1.0 - counts / reached, axis=1)[:, :-1]
    end_within = np.maximum(sums / np.maximum(counts, _LEAST) - _EDGES[:-1], 0.0)
    rest[:, :-1] = _sum_from_right(-np.diff(survival) * end_within + _WIDTHS * survival[:, 1:])
    return survival, rest


def _sum_from_right(values: F64) -> F64:
    return np.cumsum(values[:, ::-1], axis=1)[:, ::-1]


def _share_of_bucket(counts: F64, sums: F64) -> F64:
    """[buckets] how much a bucket's own mean counts against that of all: none where buckets differ by chance only.

    Empirical Bayes: the variance of answers within buckets against the variance of the buckets' means.
    """
    weight = counts.sum(axis=1)
    if weight.sum() <= 2.0:
        return np.zeros(len(weight))
    means = sums.sum(axis=1) / np.maximum(weight, 1e-12)
    squares = (sums**2 / np.maximum(counts, 1e-12)).sum(axis=1)
    all_mean = sums.sum() / weight.sum()
    within = max(float((squares - weight * means**2).sum() / weight.sum()), 1e-9)
    used = weight > 1e-9
    spread = float((weight * (means - all_mean) ** 2).sum()) - within * max(int(used.sum()) - 1, 0)
    between = max(spread / float(weight.sum()), 0.0)
    return between / (between + within / np.maximum(weight, 1e-12))
