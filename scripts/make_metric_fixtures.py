#!/usr/bin/env python3
"""Makes tests/fixtures/metrics.json: predictions with ties, a label without positives, one that always
holds and one whose probabilities are all equal, and their scores by scikit-learn and torchmetrics.

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


def main() -> None:
    warnings.simplefilter("ignore")
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
