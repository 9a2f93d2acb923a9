//! Splits rows so that each part has its share of each label: iterative stratification (Sechidis et al., 2011).
//!
//! Rows of one group, such as rows with the same text, stay in one part.

use super::sampler::epoch_order;

/// The part (an index into `shares`) of each row.
///
/// `labels` lists each row's labels as indices, `groups` each row's group, both of one length; `shares` are the
/// parts' shares of all rows. The same input and seed give the same parts.
///
/// # Panics
/// If `groups` has another length than `labels`, or `shares` is empty.
#[must_use]
pub fn stratify(labels: &[Vec<usize>], groups: &[usize], shares: &[f64], seed: u32) -> Vec<usize> {
    assert!(labels.len() == groups.len() && !shares.is_empty(), "a row without a group, or no part");
    let mut splitter = Splitter::new(labels, groups, shares, seed);
    while let Some(label) = splitter.rarest_label() {
        splitter.distribute(label);
    }
    splitter.distribute_unlabelled();
    groups.iter().map(|&group| splitter.parts[splitter.unit_of[group]]).collect()
}

const UNASSIGNED: usize = usize::MAX;

/// The rows of one group, which are placed together.
struct Unit {
    rows: usize,
    /// Labels and the number of rows that have them.
    labels: Vec<(usize, usize)>,
}

struct Splitter<'a> {
    units: Vec<Unit>,
    unit_of: Vec<usize>,
    /// Units in a random order, which decides between equals.
    order: Vec<usize>,
    /// For each label, its units in that order.
    units_of: Vec<Vec<usize>>,
    /// For each label, its rows that are not placed yet.
    remaining: Vec<usize>,
    /// For each part, rows that it still wants: in all, and of each label.
    wanted: Vec<f64>,
    wanted_of: Vec<Vec<f64>>,
    parts: Vec<usize>,
    shares: &'a [f64],
}

impl<'a> Splitter<'a> {
    fn new(labels: &[Vec<usize>], groups: &[usize], shares: &'a [f64], seed: u32) -> Self {
        let mut unit_of = vec![UNASSIGNED; groups.iter().max().map_or(0, |&last| last + 1)];
        let mut units: Vec<Unit> = Vec::new();
        for (row, &group) in groups.iter().enumerate() {
            if unit_of[group] == UNASSIGNED {
                unit_of[group] = units.len();
                units.push(Unit { rows: 0, labels: Vec::new() });
            }
            let unit = &mut units[unit_of[group]];
            unit.rows += 1;
            for &label in &labels[row] {
                match unit.labels.iter_mut().find(|(name, _)| *name == label) {
                    Some((_, count)) => *count += 1,
                    None => unit.labels.push((label, 1)),
                }
            }
        }
        let label_count = labels.iter().flatten().max().map_or(0, |&last| last + 1);
        let mut remaining = vec![0; label_count];
        let mut units_of = vec![Vec::new(); label_count];
        let order = epoch_order(units.len(), seed, 0, true);
        for &index in &order {
            for &(label, count) in &units[index].labels {
                remaining[label] += count;
                units_of[label].push(index);
            }
        }
        let total: f64 = shares.iter().sum();
        let wanted = shares.iter().map(|share| share / total * labels.len() as f64).collect();
        let of_label = |share: &f64| remaining.iter().map(|&rows| share / total * rows as f64).collect();
        let wanted_of = shares.iter().map(of_label).collect();
        let parts = vec![UNASSIGNED; units.len()];
        Self { units, unit_of, order, units_of, remaining, wanted, wanted_of, parts, shares }
    }

    /// The label with the fewest rows that are not placed yet: later it might find no room where it is wanted.
    fn rarest_label(&self) -> Option<usize> {
        (0..self.remaining.len()).filter(|&label| self.remaining[label] > 0).min_by_key(|&label| self.remaining[label])
    }

    fn distribute(&mut self, label: usize) {
        for unit in std::mem::take(&mut self.units_of[label]) {
            if self.parts[unit] == UNASSIGNED {
                let part = self.best_part(|part| (self.wanted_of[part][label], self.wanted[part]));
                self.place(unit, part);
            }
        }
    }

    fn distribute_unlabelled(&mut self) {
        for unit in std::mem::take(&mut self.order) {
            if self.parts[unit] == UNASSIGNED {
                let part = self.best_part(|part| (self.wanted[part], self.shares[part]));
                self.place(unit, part);
            }
        }
    }

    /// The first part with the largest key.
    fn best_part(&self, key: impl Fn(usize) -> (f64, f64)) -> usize {
        let larger = |a: (f64, f64), b: (f64, f64)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).is_gt();
        (1..self.wanted.len()).fold(0, |best, part| if larger(key(part), key(best)) { part } else { best })
    }

    fn place(&mut self, unit: usize, part: usize) {
        self.parts[unit] = part;
        self.wanted[part] -= self.units[unit].rows as f64;
        for &(label, count) in &self.units[unit].labels {
            self.remaining[label] -= count;
            self.wanted_of[part][label] -= count as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    /// Rows with labels of very different frequency, 1 in 2 to 1 in 200.
    fn rows(count: usize) -> Vec<Vec<usize>> {
        let stream = Stream::new(7, 0, 0, Purpose::Trainable);
        let has = |row: usize, label: u32| {
            stream.block(row as u64)[label as usize % 4].is_multiple_of(2 * (label + 1).pow(2))
        };
        (0..count).map(|row| (0..10).filter(|&label| has(row, label)).map(|label| label as usize).collect()).collect()
    }

    #[test]
    fn each_part_has_its_share_of_rows_and_of_each_label() {
        let labels = rows(1000);
        let groups: Vec<usize> = (0..labels.len()).collect();
        let parts = stratify(&labels, &groups, &[0.8, 0.1, 0.1], 3);
        for (part, share) in [0.8, 0.1, 0.1].into_iter().enumerate() {
            let size = parts.iter().filter(|&&of| of == part).count();
            assert!((size as f64 - share * 1000.0).abs() <= 10.0, "{size} rows in part {part}");
            for label in 0..10 {
                let all = labels.iter().filter(|row| row.contains(&label)).count();
                let here = labels.iter().zip(&parts).filter(|(row, of)| **of == part && row.contains(&label)).count();
                let expected = share * all as f64;
                assert!((here as f64 - expected).abs() <= 2.0, "label {label}: {here} of {all} in part {part}");
            }
        }
    }

    #[test]
    fn a_group_stays_together_and_a_seed_decides() {
        let labels = rows(300);
        let groups: Vec<usize> = (0..300).map(|row| row / 3 * 7).collect();
        let parts = stratify(&labels, &groups, &[0.6, 0.4], 1);
        assert!(parts.chunks(3).all(|group| group.iter().all(|&part| part == group[0])), "a group is in two parts");
        let size = parts.iter().filter(|&&part| part == 0).count();
        assert!((171..=189).contains(&size), "{size}");
        assert_eq!(parts, stratify(&labels, &groups, &[0.6, 0.4], 1));
        assert_ne!(parts, stratify(&labels, &groups, &[0.6, 0.4], 2));
    }

    #[test]
    fn a_label_with_two_rows_is_in_two_parts_of_equal_share() {
        let labels = vec![vec![0], vec![1, 0], vec![], vec![1], vec![]];
        let parts = stratify(&labels, &[0, 1, 2, 3, 4], &[0.5, 0.5], 0);
        assert_ne!(parts[1], parts[3]);
        assert!(stratify(&[], &[], &[1.0], 0).is_empty());
    }
}
