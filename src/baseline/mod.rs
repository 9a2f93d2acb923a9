//! A yardstick: TF-IDF and one logistic regression a label, trained in seconds on the same rows.
//!
//! The settings are scikit-learn's `TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)` and
//! `LogisticRegression(C=10, class_weight="balanced")`, which do well on short texts without any search.

mod logistic;
mod tfidf;

use rayon::prelude::*;

use crate::interrupt;
use logistic::Logistic;
use tfidf::Vectorizer;

/// A trained linear classifier.
pub struct Baseline {
    vectorizer: Vectorizer,
    labels: Vec<Logistic>,
}

impl Baseline {
    /// Trains on texts and their labels: one row of 0 and 1 a text.
    pub fn fit<T: AsRef<str> + Sync>(texts: &[T], labels: &[Vec<f32>]) -> anyhow::Result<Self> {
        let vectorizer = Vectorizer::fit(texts);
        let rows = vectorizer.transform(texts);
        let count = labels.first().map_or(0, Vec::len);
        let fit_label = |label: usize| {
            interrupt::check()?;
            let targets: Vec<bool> = labels.iter().map(|row| row[label] > 0.5).collect();
            Ok(Logistic::fit(&rows, vectorizer.features(), &targets))
        };
        let labels = (0..count).into_par_iter().map(fit_label).collect::<anyhow::Result<_>>()?;
        Ok(Self { vectorizer, labels })
    }

    /// The probability of each label, one row a text.
    #[must_use]
    pub fn predict<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Vec<Vec<f32>> {
        let rows = self.vectorizer.transform(texts);
        rows.par_iter().map(|row| self.labels.iter().map(|label| label.probability(row) as f32).collect()).collect()
    }

    /// Words and pairs of words that have a weight.
    #[must_use]
    pub fn features(&self) -> usize {
        self.vectorizer.features()
    }
}
