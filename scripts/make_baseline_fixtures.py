"""Prints what tests/baseline.rs expects: F1 of scikit-learn's TF-IDF and logistic regression.

Needs scikit-learn 1.9 and pandas. The generated set comes from the same 64-bit generator as in the test.
"""

import warnings

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier

# Labels without a training row are expected.
warnings.filterwarnings("ignore", category=UserWarning)

MASK = (1 << 64) - 1


def generate(labels, rows):
    """Each row has 1 to 3 labels, each with two of its four words, among words that say nothing."""
    state = 42

    def draw(bound):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        return (state >> 33) % bound

    texts, targets = [], []
    for _ in range(rows):
        words, row = [], [0] * labels
        for _ in range(1 + draw(3)):
            # Frequent labels and rare ones.
            label = draw(1 + draw(labels))
            row[label] = 1
            words += [f"w{label}x{draw(4)}" for _ in range(2)]
        words += [f"common{draw(300)}" for _ in range(10)]
        texts.append(" ".join(words))
        targets.append(row)
    return texts, targets


def score(train, train_labels, test, test_labels):
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    rows = vectorizer.fit_transform(train)
    model = OneVsRestClassifier(LogisticRegression(C=10, class_weight="balanced", max_iter=1000, tol=1e-6), n_jobs=1)
    predicted = model.fit(rows, train_labels).predict(vectorizer.transform(test))
    return [f1_score(test_labels, predicted, average=average, zero_division=0) for average in ("micro", "macro")]


data = {split: pd.read_csv(f"data/debtags/{split}.csv") for split in ("train", "test")}
names = [name for name in data["train"] if name not in ("uid", "text")]
print("debtags", score(data["train"].text, data["train"][names].values, data["test"].text, data["test"][names].values))



texts, targets = generate(1000, 4000)
targets = np.array(targets)
print("generated", score(texts[:3000], targets[:3000], texts[3000:], targets[3000:]))
