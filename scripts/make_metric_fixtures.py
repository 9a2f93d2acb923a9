#!/usr/bin/env python3
"""Makes tests/fixtures/metrics.json: predictions with ties, a label without positives, one that always
holds and one whose probabilities are all equal, and their scores by scikit-learn and torchmetrics. And
tests/fixtures/intervals.json: rare labels, their bootstrap intervals by numpy over scikit-learn's F1, and the
best that any threshold reaches for an objective.

    pip install scikit-learn==1.9.1 torchmetrics==1.9.0 torch==2.15.0
    python scripts/make_metric_fixtures.py
"""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_calibration_error

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "metrics.json"


INTERVALS = OUT.with_name("intervals.json")


def headline(targets: np.ndarray, predicted: np.ndarray, occurs: np.ndarray) -> list[float]:
    """Micro-F1, macro-F1 and accuracy of drawn rows; a label that was not drawn is left out of the
    mean over those that occur, and one that occurs nowhere counts 0."""
    drawn = targets.any(axis=0)
    per_label = sk.f1_score(targets, predicted, average=None, zero_division=0)
    some = targets.any() or predicted.any()
    return [
        sk.f1_score(targets, predicted, average="micro", zero_division=0) if some else np.nan,
        per_label[drawn].mean() * occurs.mean() if drawn.any() else np.nan,
        sk.accuracy_score(targets, predicted),
    ]


def intervals(samples: list[list[float]], estimate: list[float]) -> list[list[float] | None]:
    """Percentiles, or None where they do not contain the estimate."""
    out = []
    for values, value in zip(np.array(samples).T, estimate):
        low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
        out.append([low, high] if low - 1e-9 <= value <= high + 1e-9 else None)
    return out


def make_intervals() -> None:
    rng = np.random.default_rng(11)
    rows, labels, resamples = 80, 7, 1000
    targets = np.zeros((rows, labels), bool)
    for label, positives in enumerate([1, 2, 3, 0, 1, 30, 5]):
        targets[rng.choice(rows, positives, replace=False), label] = True
    # The first three are found without a mistake; of the others some are missed, and some predicted wrongly.
    wrong = rng.uniform(size=(rows, labels)) < np.array([0, 0, 0, 0.02, 0.05, 0.2, 0.05])
    predicted = targets ^ wrong
    other = targets ^ (rng.uniform(size=(rows, labels)) < 0.06)
    probabilities = np.round(np.clip(0.25 + 0.5 * predicted + rng.normal(size=(rows, labels)) / 6, 0, 1), 2)
    occurs = targets.any(axis=0)
    # MT19937 seeded as Rust's rand_mt seeds it, rows by remainder.
    generator = np.random.RandomState(0)
    draws = [generator.randint(0, 2**32, size=rows, dtype=np.uint32) % rows for _ in range(resamples)]
    everything = np.arange(rows)
    of = lambda p, d: headline(targets[d], p[d], occurs)
    difference = lambda d: list(np.subtract(of(other, d), of(predicted, d)))
    best = []
    for label in range(labels):
        t, p = targets[:, label], probabilities[:, label].astype(np.float32)
        # What `p > threshold` can give: one threshold below each probability, and one above all.
        choices = [p >= cut for cut in np.unique(p[p > 0])] + [np.zeros(rows, bool)]
        reach = lambda score: max((score(t, choice) for choice in choices), default=None)
        pr = [(sk.precision_score(t, c, zero_division=1), sk.recall_score(t, c, zero_division=0)) for c in choices]
        best.append(None if not t.any() else {
            "f1": reach(lambda t, c: sk.f1_score(t, c, zero_division=0)),
            "precision>=0.8": max(r for q, r in pr if q >= 0.8),
            "recall>=0.8": max(q for q, r in pr if r >= 0.8),
        })
    INTERVALS.write_text(json.dumps({
        "targets": targets.astype(int).tolist(),
        "predicted": predicted.astype(int).tolist(),
        "other": other.astype(int).tolist(),
        "probabilities": probabilities.tolist(),
        "intervals": intervals([of(predicted, d) for d in draws], of(predicted, everything)),
        "difference": intervals([difference(d) for d in draws], difference(everything)),
        "best": best,
    }) + "\n")


def main() -> None:
    warnings.simplefilter("ignore")
    make_intervals()
    rng = np.random.default_rng(5)
    rows, labels = 157, 6
    targets = rng.uniform(size=(rows, labels)) < np.array([0.4, 0.1, 0.25, 0.0, 1.0, 0.3])
    noise = rng.normal(size=(rows, labels))
    probabilities = np.round(1 / (1 + np.exp(-(2.5 * targets - 1.5 + noise))), 2)
    probabilities[:, 5] = 0.5
    probabilities = probabilities.astype(np.float32)
    predicted = probabilities > 0.5
    per_label = []
    for label in range(labels):
        t, p = targets[:, label], probabilities[:, label]
        per_label.append({
            "average_precision": sk.average_precision_score(t, p) if t.any() else None,
            "roc_auc": sk.roc_auc_score(t, p) if t.any() and not t.all() else None,
        })
    mean = lambda key: float(np.mean([row[key] for row in per_label if row[key] is not None]))
    flat = torch.tensor(probabilities.ravel()), torch.tensor(targets.ravel().astype(int))
    expected = {
        "f1_micro": sk.f1_score(targets, predicted, average="micro"),
        "f1_macro": sk.f1_score(targets, predicted, average="macro", zero_division=0),
        "f1_weighted": sk.f1_score(targets, predicted, average="weighted", zero_division=0),
        "f1_samples": sk.f1_score(targets, predicted, average="samples", zero_division=0),
        "accuracy": sk.accuracy_score(targets, predicted),
        "hamming_loss": sk.hamming_loss(targets, predicted),
        "average_precision_macro": mean("average_precision"),
        "roc_auc_macro": mean("roc_auc"),
        "brier": float(np.mean((probabilities.astype(np.float64) - targets) ** 2)),
        "calibration_error": float(binary_calibration_error(*flat, n_bins=15, norm="l1")),
    }
    expected["log_loss"] = sk.log_loss(targets.ravel(), probabilities.ravel())
    OUT.write_text(json.dumps({
        "probabilities": [[round(float(p), 2) for p in row] for row in probabilities],
        "targets": targets.astype(int).tolist(), "expected": expected, "per_label": per_label,
    }) + "\n")
    print(expected)


if __name__ == "__main__":
    main()
