"""How long prompts and answers are in the MLPerf data sets, as distributions. Load generators draw from these too.

The data sets' token counts are not published in full. Means are; shapes of the answers follow from the end-to-end
percentiles of published logs; shapes of the prompts are assumptions. Each distribution says which.
"""

from dataclasses import dataclass, replace
from math import exp, log, sqrt
from statistics import NormalDist

import numpy as np

from ..protocol import I32

_STANDARD = NormalDist()


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """Log-normal token counts, cut at both ends.

    Attributes:
        median: of the log-normal before cutting, tokens.
        sigma: standard deviation of the logarithm.
        low: least tokens.
        high: most tokens.
        source: where it comes from.
    """

    median: float
    sigma: float
    low: int
    high: int
    source: str

    @property
    def mean(self) -> float:
        """After cutting; the rounding of single draws left out."""
        low, high = (log(limit / self.median) / self.sigma for limit in (self.low, self.high))
        share_of_mean = _STANDARD.cdf(high - self.sigma) - _STANDARD.cdf(low - self.sigma)
        middle = self.median * exp(self.sigma**2 / 2) * share_of_mean
        return self.low * _STANDARD.cdf(low) + middle + self.high * (1 - _STANDARD.cdf(high))

    def with_mean(self, mean: float) -> "LengthDistribution":
        """The same shape with its median moved so that the mean is `mean`."""
        low, high = float(self.low), float(self.high)
        while high / low > 1 + 1e-9:
            middle = sqrt(low * high)
            low, high = (middle, high) if replace(self, median=middle).mean < mean else (low, middle)
        return replace(self, median=low)

    def sample(self, count: int, random: np.random.Generator) -> I32:
        """[count] token counts in random order: one from each of `count` equally likely parts of the distribution.

        So their mean hardly depends on `random`, as LoadGen issues whole permutations of a data set.
        """
        z = np.array([_STANDARD.inv_cdf((part + 0.5) / count) for part in range(count)])
        drawn = self.median * np.exp(self.sigma * random.permutation(z))
        return np.clip(np.rint(drawn), self.low, self.high).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Prompts and answers of one data set; drawn independently of each other."""

    prompt: LengthDistribution
    answer: LengthDistribution


OPENORCA = Lengths(
    prompt=LengthDistribution(
        median=216,
        sigma=0.85,
        low=8,
        high=1024,
        source="assumed: mean 294, cut at the rules' 1,024 tokens; the data set's mean is not published",
    ),
    answer=LengthDistribution(
        median=240.5,
        sigma=0.574,
        low=2,
        high=1024,
        source="derived from the end-to-end percentiles over the TPOT of 8x MI355X Llama 2 70B Interactive, MLPerf "
        "v6.0 (p50 239, p90 499, p95 611, p97 702, p99 909 tokens; mean 283 published)",
    ),
)

PUBMED_SUMMARIES = Lengths(
    prompt=LengthDistribution(
        median=7700,
        sigma=0.3,
        low=1000,
        high=15330,
        source="assumed: mean about 8,000 (a comment in a public loader of the set); 15,330 is published",
    ),
    answer=LengthDistribution(
        median=1342,
        sigma=0.208,
        low=64,
        high=10240,
        source="derived from the end-to-end percentiles over the TPOT of 8x MI355X GPT-OSS-120B Server, MLPerf "
        "v6.0 (p50 1,340, p90 1,745, p99 2,190, p99.9 2,620 tokens; mean 1,372 published)",
    ),
)

WORKLOADS = {"openorca": OPENORCA, "pubmed-summaries": PUBMED_SUMMARIES}
