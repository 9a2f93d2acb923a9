//! What `llmcls check` finds, for people and for scripts.

use serde::Serialize;

use super::cache_plan::CachePlan;
use crate::config::data::LongText;
use crate::console::{bytes, duration};
use crate::data::long_text::Limit;
use crate::run::results::{Parameters, Yardstick};
use crate::training::estimate::MemoryEstimate;

/// Labels of a table on the terminal; JSON has all.
pub const SHOWN: usize = 20;

/// What a configuration, its data and its base were found to be.
#[derive(Debug, Serialize)]
pub struct Checked {
    pub base: String,
    pub labels: Vec<LabelRows>,
    pub splits: Vec<Lengths>,
    /// Tokens after which texts are cut.
    pub max_length: usize,
    /// What is read of longer texts.
    #[serde(skip)]
    pub limit: Limit,
    /// The most that the base can take.
    pub longest: Option<usize>,
    pub parameters: Parameters,
    pub adapted_modules: usize,
    pub memory: MemoryParts,
    pub time: TimeEstimate,
    /// What frozen layers computed once will take on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CachePlan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Yardstick>,
}

/// Positive rows of one label in each split.
#[derive(Debug, Serialize)]
pub struct LabelRows {
    pub label: String,
    /// In the order of the splits.
    pub positive: Vec<usize>,
}

/// Tokens of a split's texts before cutting.
#[derive(Debug, Serialize)]
pub struct Lengths {
    pub split: String,
    pub rows: usize,
    pub median: usize,
    pub at_95_percent: usize,
    pub longest: usize,
    /// Texts that are cut at `max_length`.
    pub cut: usize,
    /// Texts that other lengths would cut: multiples of 64 up to one that cuts at most 1%.
    pub cut_at: Vec<(usize, usize)>,
}

/// Bytes at the peak.
#[derive(Debug, Serialize)]
pub struct MemoryParts {
    pub total_bytes: u64,
    pub base_bytes: u64,
    pub packed_bytes: u64,
    pub trained_bytes: u64,
    pub optimizer_bytes: u64,
    pub activations_bytes: u64,
}

/// How long training takes unless it stops early.
#[derive(Debug, Serialize)]
pub struct TimeEstimate {
    pub seconds: f64,
    /// Of one seed.
    pub steps: usize,
    pub seeds: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folds: Option<usize>,
    pub training_tokens_per_second: f64,
    pub evaluation_tokens_per_second: f64,
}

impl From<MemoryEstimate> for MemoryParts {
    fn from(memory: MemoryEstimate) -> Self {
        Self {
            total_bytes: memory.total(),
            base_bytes: memory.base,
            packed_bytes: memory.packed,
            trained_bytes: memory.trained,
            optimizer_bytes: memory.optimizer,
            activations_bytes: memory.activations,
        }
    }
}

impl Lengths {
    /// Of a split with these lengths, ascending, of which `cut` are cut.
    pub fn new(split: &str, lengths: &[usize], cut: usize) -> Self {
        const STEP: usize = 64;
        let at = |share: f64| lengths.get((lengths.len().saturating_sub(1) as f64 * share) as usize);
        let longest = lengths.last().copied().unwrap_or(0);
        let cut_by = |length: usize| lengths.len() - lengths.partition_point(|&other| other <= length);
        let mut cut_at = Vec::new();
        for length in (1..=longest.div_ceil(STEP)).map(|index| index * STEP) {
            let count = cut_by(length);
            cut_at.push((length, count));
            if 100 * count <= lengths.len() {
                break;
            }
        }
        Self {
            split: split.to_owned(),
            rows: lengths.len(),
            median: at(0.5).copied().unwrap_or(0),
            at_95_percent: at(0.95).copied().unwrap_or(0),
            longest,
            cut,
            cut_at,
        }
    }

    fn share(&self, count: usize) -> f64 {
        100.0 * count as f64 / self.rows.max(1) as f64
    }

    /// A larger length that cuts few texts, and how many.
    fn better(&self, max_length: usize, most: Option<usize>) -> Option<(usize, usize)> {
        let within = |&&(length, count): &&(usize, usize)| {
            length > max_length && count < self.cut && most.is_none_or(|most| length <= most)
        };
        let last = self.cut_at.iter().rev().find(within)?;
        // One that is much shorter and cuts at most one text in twenty is the better offer.
        let shorter = self.cut_at.iter().filter(within).find(|(_, count)| 20 * count <= self.rows);
        Some(*shorter.unwrap_or(last))
    }
}

impl Checked {
    /// A length that keeps more texts whole, for texts that are not read in windows.
    fn better(&self, split: &Lengths) -> Option<(usize, usize)> {
        let is_one = self.limit.long_text != LongText::Windows;
        split.better(self.max_length, self.longest).filter(|_| is_one)
    }

    /// For the terminal.
    pub fn to_text(&self) -> String {
        let mut out = self.label_table();
        for split in &self.splits {
            out.push_str(&format!(
                "{}: {} tokens in the median, {} at 95%, {} at most, before cutting; {} texts ({:.1}%) {}{}\n",
                split.split,
                split.median,
                split.at_95_percent,
                split.longest,
                split.cut,
                split.share(split.cut),
                self.limit.of_longer_texts(),
                self.better(split).map_or_else(String::new, |(length, count)| {
                    format!(", {:.1}% at data.max_length={length}", split.share(count))
                })
            ));
        }
        let Parameters { frozen, trained } = self.parameters;
        let what = match frozen {
            0 => "every weight is trained".to_owned(),
            _ => format!(
                "{:.2}% are trained, in {} adapted modules and the head",
                100.0 * trained as f64 / (frozen + trained) as f64,
                self.adapted_modules
            ),
        };
        out.push_str(&format!("{}: {frozen} frozen parameters, {trained} trained; {what}\n", self.base));
        let memory = &self.memory;
        let packed = match memory.packed_bytes {
            0 => String::new(),
            packed => format!(", packed copies of it for short batches {}", bytes(packed)),
        };
        out.push_str(&format!(
            "memory: about {} at the peak: base {}{packed}, trained weights and gradients {}, optimizer {}, activations of \
             the largest batch {}\n",
            bytes(memory.total_bytes),
            bytes(memory.base_bytes),
            bytes(memory.trained_bytes),
            bytes(memory.optimizer_bytes),
            bytes(memory.activations_bytes)
        ));
        if let Some(plan) = &self.cache {
            let place =
                plan.directory.as_ref().map_or("memory".to_owned(), |directory| directory.display().to_string());
            out.push_str(&format!(
                "cache: {} of at most {} for the output of the {} frozen layers, which are computed once: in {place}\n",
                bytes(plan.bytes),
                bytes(plan.limit),
                plan.frozen_layers
            ));
        }
        let time = &self.time;
        out.push_str(&format!(
            "time: about {} for {} steps of {} seed{}{}, unless training stops early ({:.0} tokens/s in training, {:.0} in \
             evaluation)\n",
            duration(time.seconds),
            time.steps,
            time.seeds,
            if time.seeds == 1 { "" } else { "s" },
            time.folds.map_or_else(String::new, |folds| format!(" and {folds} folds with their learning curve")),
            time.training_tokens_per_second,
            time.evaluation_tokens_per_second
        ));
        if let Some(baseline) = &self.baseline {
            out.push_str(&baseline.to_text());
        }
        out
    }

    /// Positive rows of the labels that have the most in training.
    fn label_table(&self) -> String {
        let mut order: Vec<usize> = (0..self.labels.len()).collect();
        let rest = self.labels.len().saturating_sub(SHOWN);
        if rest > 0 {
            order.sort_by_key(|&index| std::cmp::Reverse(self.labels[index].positive[0]));
            order.truncate(SHOWN);
        }
        let shown = order.iter().map(|&index| &self.labels[index]);
        let width = shown.clone().map(|row| row.label.chars().count()).max().unwrap_or(0).max(13);
        let mut out = format!("{:width$}", "positive rows");
        self.splits.iter().for_each(|split| out.push_str(&format!("  {:>16}", split.split)));
        for row in shown {
            out.push_str(&format!("\n{:width$}", row.label));
            for (count, split) in row.positive.iter().zip(&self.splits) {
                out.push_str(&format!("  {count:>8} ({:>4.1}%)", split.share(*count)));
            }
        }
        if rest > 0 {
            out.push_str(&format!("\n… and {rest} labels with fewer rows; --json lists all"));
        }
        out.push_str(&format!("\n{:width$}", "rows"));
        self.splits.iter().for_each(|split| out.push_str(&format!("  {:>16}", split.rows)));
        out.push('\n');
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_length_that_cuts_few_texts_is_offered() {
        let lengths: Vec<usize> = (1..=1000).map(|row| if row > 900 { 190 } else { 50 }).collect();
        let found = Lengths::new("train", &lengths, 100);
        assert_eq!(
            (found.median, found.longest, found.cut_at.as_slice()),
            (50, 190, &[(64, 100), (128, 100), (192, 0)][..])
        );
        assert_eq!(found.better(64, None), Some((192, 0)));
        assert_eq!(found.better(64, Some(128)), None);
        assert_eq!(Lengths::new("train", &[], 0).cut_at, []);
    }
}
