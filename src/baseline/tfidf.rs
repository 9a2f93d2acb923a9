//! Texts as sparse vectors: words and pairs of words, weighted by TF-IDF, as scikit-learn does it.

use std::collections::HashMap;
use std::sync::LazyLock;

use rayon::prelude::*;
use regex::Regex;

/// A vector of length 1: features in ascending order, with their values.
pub(super) type SparseRow = Vec<(u32, f64)>;

/// Words have two or more letters, digits or underscores.
static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b\w\w+\b").expect("a valid pattern"));

pub(super) struct Vectorizer {
    index: HashMap<String, u32>,
    inverse_document_frequency: Vec<f64>,
}

impl Vectorizer {
    /// Learns the vocabulary: what occurs in at least two texts, or in any if nothing does.
    pub(super) fn fit<T: AsRef<str> + Sync>(texts: &[T]) -> Self {
        let mut documents: HashMap<String, u32> = HashMap::new();
        for terms in texts.par_iter().map(|text| count_terms(text.as_ref())).collect::<Vec<_>>() {
            for term in terms.into_keys() {
                *documents.entry(term).or_default() += 1;
            }
        }
        let fewest = if documents.values().any(|&count| count > 1) { 2 } else { 1 };
        let mut terms: Vec<(String, u32)> = documents.into_iter().filter(|(_, count)| *count >= fewest).collect();
        terms.sort_unstable();
        let smooth = |count: u32| ((1.0 + texts.len() as f64) / (1.0 + f64::from(count))).ln() + 1.0;
        let inverse_document_frequency = terms.iter().map(|(_, count)| smooth(*count)).collect();
        let index = terms.into_iter().map(|(term, _)| term).zip(0..).collect();
        Self { index, inverse_document_frequency }
    }

    pub(super) fn features(&self) -> usize {
        self.inverse_document_frequency.len()
    }

    pub(super) fn transform<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Vec<SparseRow> {
        texts.par_iter().map(|text| self.row(text.as_ref())).collect()
    }

    fn row(&self, text: &str) -> SparseRow {
        let weigh = |(term, count): (String, u32)| {
            let feature = *self.index.get(&term)?;
            let frequency = 1.0 + f64::from(count).ln();
            Some((feature, frequency * self.inverse_document_frequency[feature as usize]))
        };
        let mut row: SparseRow = count_terms(text).into_iter().filter_map(weigh).collect();
        row.sort_unstable_by_key(|(feature, _)| *feature);
        let norm = row.iter().map(|(_, value)| value * value).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|(_, value)| *value /= norm);
        }
        row
    }
}

fn count_terms(text: &str) -> HashMap<String, u32> {
    let text = text.to_lowercase();
    let words: Vec<&str> = WORD.find_iter(&text).map(|word| word.as_str()).collect();
    let mut counts = HashMap::new();
    for word in &words {
        *counts.entry((*word).to_owned()).or_default() += 1;
    }
    for pair in words.windows(2) {
        *counts.entry(pair.join(" ")).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)` of scikit-learn 1.9.1 on these texts.
    #[test]
    fn weights_are_those_of_scikit_learn() {
        let texts = ["the cat sat, the cat ran", "A cat sat on the mat", "dogs ran"];
        let vectorizer = Vectorizer::fit(&texts);
        let mut terms: Vec<(&str, u32)> =
            vectorizer.index.iter().map(|(term, &index)| (term.as_str(), index)).collect();
        terms.sort_unstable_by_key(|(_, index)| *index);
        let names: Vec<&str> = terms.iter().map(|(term, _)| *term).collect();
        assert_eq!(names, ["cat", "cat sat", "ran", "sat", "the"]);
        let expected = [
            vec![(0, 0.572_928_83), (1, 0.338_381), (2, 0.338_381), (3, 0.338_381), (4, 0.572_928_83)],
            vec![(0, 0.5), (1, 0.5), (3, 0.5), (4, 0.5)],
            vec![(2, 1.0)],
        ];
        for (row, expected) in vectorizer.transform(&texts).iter().zip(&expected) {
            assert_eq!(row.len(), expected.len());
            for ((feature, value), (expected_feature, expected_value)) in row.iter().zip(expected) {
                assert!(feature == expected_feature && (value - expected_value).abs() < 1e-7, "{row:?}");
            }
        }
    }
}
