"""The statistics behind a claim, against textbook values and by simulation."""

import numpy as np
import pytest
from made import record
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from neat_bench.results.figures import pareto
from neat_bench.results.selection import select
from neat_bench.results.significance import (
    BOOTSTRAPPED,
    average_ranks,
    critical_difference,
    detectable,
    holm,
    interval,
    mcnemar,
    over_seeds,
    paired_bootstrap,
    paired_t,
    wilcoxon,
)


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2_000):
        low, high = interval(generator.normal(0.8, 0.02, 5))
        covered += low <= 0.8 <= high
    assert 0.93 < covered / 2_000 < 0.97
    assert interval([0.8]) is None
    assert interval([0.8, 0.8]) == (0.8, 0.8)


def test_paired_t_takes_shared_seeds_only():
    ours, theirs = {0: 0.9, 1: 0.92, 2: 0.88, 7: 0.1}, {0: 0.8, 1: 0.85, 2: 0.79, 8: 0.9}
    assert paired_t(ours, theirs) == pytest.approx(stats.ttest_rel([0.9, 0.92, 0.88], [0.8, 0.85, 0.79]).pvalue)
    assert paired_t(ours, {0: 0.8}) is None
    assert paired_t({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}) == 1.0
    assert paired_t({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.5, 2: 0.6}) is None  # no spread to judge by


def test_mcnemar_is_exact_and_looks_at_disagreements_only():
    ours, theirs = np.array([True] * 8 + [False] * 2 + [True] * 50), np.array([False] * 8 + [True] * 2 + [True] * 50)
    assert mcnemar(ours, theirs) == pytest.approx(2 * sum(stats.binom.pmf(k, 10, 0.5) for k in range(3)))
    assert mcnemar(ours, ours) == 1.0


@pytest.mark.parametrize("metric", BOOTSTRAPPED)
def test_the_bootstraps_metrics_are_the_records_and_it_finds_a_clear_difference_only(metric):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 300)
    good = np.where(generator.random(300) < 0.95, labels, 1 - labels)
    bad = np.where(generator.random(300) < 0.7, labels, 1 - labels)
    reference = {"pearson": lambda p, y: stats.pearsonr(p, y).statistic, "f1": lambda p, y: f1_score(y, p),
                 "matthews_correlation": lambda p, y: matthews_corrcoef(y, p)}[metric]  # fmt: skip
    assert BOOTSTRAPPED[metric](good[None].astype(float), labels[None].astype(float), -1)[0] == pytest.approx(
        reference(good, labels)
    )
    assert paired_bootstrap(metric, good, bad, labels) < 0.01
    other = np.where(np.roll(good != labels, 150), 1 - labels, labels)  # as many errors, on other items
    assert paired_bootstrap(metric, good, other, labels) > 0.05
    assert paired_bootstrap(metric, good, good, labels) == 1.0


def test_holm_steps_down_and_leaves_the_unknown_out():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert over_seeds([0.2]) == 0.2
    assert over_seeds([0.01, 0.02, 0.9]) == pytest.approx(0.04)


def test_wilcoxon_needs_six_tasks():
    assert wilcoxon([1, 2, 3, 4, 5], [0, 0, 0, 0, 0]) is None
    assert wilcoxon([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]) == pytest.approx(0.03125)


def test_a_difference_of_the_detectable_size_is_found_in_eighty_of_a_hundred_cases():
    generator = np.random.default_rng(1)
    sample = generator.normal(0, 1, 5)
    effect = detectable((sample - sample.mean()) / sample.std(ddof=1))
    found = sum(stats.ttest_1samp(generator.normal(effect, 1, 5), 0).pvalue < 0.05 for _ in range(2_000))
    assert 0.77 < found / 2_000 < 0.83
    assert detectable([0.1]) is None


def test_ranks_and_the_critical_difference_of_demsars_paper():
    """Demsar 2006, section 3.2: four methods, 14 data sets, q 2.569, CD 1.25."""
    assert critical_difference(14, 4) == pytest.approx(1.25, abs=0.01)
    assert average_ranks(np.array([[0.9, 0.8, 0.8], [0.7, 0.9, 0.1]])).tolist() == [1.5, 1.75, 2.75]


def best_of(scores, validation):
    made = [record("neat", "one", 0, s, [f"optimizer.lr={i}"], f"c{i}", validation=v)
            for i, (s, v) in enumerate(zip(scores, validation, strict=True))]  # fmt: skip
    return select(made, "split_validation").best_of()


def test_the_best_of_k_settings_is_expected_exactly():
    scores, validation = [0.5, 0.9, 0.7], [0.6, 0.7, 0.8]
    curve = best_of(scores, validation)
    pairs = [(0, 1), (0, 2), (1, 2)]
    two = np.mean([scores[max(pair, key=lambda i: validation[i])] for pair in pairs])
    assert curve == [pytest.approx(np.mean(scores)), pytest.approx(two), pytest.approx(0.7)]


def test_of_settings_that_tie_each_is_as_likely_the_best_whatever_their_order():
    """Of settings 0, 1 and 2, the last two tie: the pairs give 0.9, 0.5 and either of them."""
    expected = [pytest.approx(0.7), pytest.approx((0.9 + 0.5 + 0.7) / 3), pytest.approx(0.7)]
    assert best_of([0.7, 0.9, 0.5], [0.6, 0.8, 0.8]) == expected
    assert best_of([0.7, 0.5, 0.9], [0.6, 0.8, 0.8]) == expected


def test_the_pareto_front_is_what_nothing_beats():
    assert pareto([(3, 0.9), (1, 0.5), (2, 0.4), (3, 0.8), (5, 0.9), (0, 0.1)]) == [5, 1, 0]
