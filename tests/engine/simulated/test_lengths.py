"""The length distributions have the means that they claim."""

import numpy as np
import pytest
from nfold.models.engine.simulated.lengths import OPENORCA, PUBMED_SUMMARIES, LengthDistribution


@pytest.mark.parametrize(
    ("distribution", "mean"),
    [
        (OPENORCA.prompt, 294),
        (OPENORCA.answer, 283),
        (PUBMED_SUMMARIES.prompt, 8000),
        (PUBMED_SUMMARIES.answer, 1372),
    ],
)
def test_means(distribution: LengthDistribution, mean: float) -> None:
    assert distribution.mean == pytest.approx(mean, rel=0.01)
    drawn = distribution.sample(5000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(distribution.mean, rel=0.005)
    assert drawn.min() >= distribution.low
    assert drawn.max() <= distribution.high


def test_the_shape_of_answers_is_that_of_the_published_percentiles() -> None:
    drawn = OPENORCA.answer.sample(20_000, np.random.default_rng(0))
    found = np.percentile(drawn, [50, 90, 95, 97, 99])
    assert found == pytest.approx([239, 499, 611, 702, 909], rel=0.02)


def test_moving_the_mean_keeps_the_shape() -> None:
    moved = OPENORCA.answer.with_mean(300)
    assert moved.mean == pytest.approx(300)
    assert moved.sigma == OPENORCA.answer.sigma


def test_order_depends_on_the_random_source_only() -> None:
    first, again, other = (OPENORCA.prompt.sample(100, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    assert sorted(first.tolist()) == sorted(other.tolist())
