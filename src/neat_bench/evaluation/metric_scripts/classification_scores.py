"""Scores of classification and regression for `evaluate.load`, computed by scikit-learn and scipy.

The configuration name chooses the score. In percent nothing: all are fractions or correlations.
"""

import datasets
import evaluate
from scipy import stats
from sklearn import metrics

SCORES = {
    "accuracy": lambda references, predictions: metrics.accuracy_score(references, predictions),
    "f1": lambda references, predictions: metrics.f1_score(references, predictions),
    "matthews_correlation": lambda references, predictions: metrics.matthews_corrcoef(references, predictions),
    "pearson": lambda references, predictions: stats.pearsonr(references, predictions).statistic,
    "spearman": lambda references, predictions: stats.spearmanr(references, predictions).statistic,
}


class ClassificationScores(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        kind = "float64" if self.config_name in ("pearson", "spearman") else "int64"
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions and references, one a test item",
            features=datasets.Features({name: datasets.Value(kind) for name in ("predictions", "references")}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {self.config_name: float(SCORES[self.config_name](references, predictions))}
