//! Examples for a prompt: rows of training, chosen by a seed, so that every label occurs once where it can.

use std::collections::HashSet;

use crate::data::same_text::TextKey;
use crate::data::sampler::epoch_order;
use crate::data::table::Example;

/// The places of `count` training rows, or of fewer if there are no more.
///
/// In the order that `seed` gives the rows, each next one is the first with the most labels that none has yet; when no
/// row adds a label, the first that is left. Rows whose text is among the `scored` ones are left out, and so is a text
/// that was chosen before. They come out in the order of the seed.
#[must_use]
pub fn choose(train: &[Example], scored: &[Example], count: usize, seed: u32) -> Vec<usize> {
    let taken: HashSet<TextKey> = scored.iter().filter_map(|row| TextKey::of(&row.text)).collect();
    let mut seen = HashSet::new();
    let is_fit =
        |&row: &usize| TextKey::of(&train[row].text).is_some_and(|key| !taken.contains(&key) && seen.insert(key));
    let order: Vec<usize> = epoch_order(train.len(), seed, 0, true).into_iter().filter(is_fit).collect();
    let mut covered = vec![false; train.first().map_or(0, |row| row.labels.len())];
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < count.min(order.len()) {
        let new = |place: usize| {
            let labels = train[order[place]].labels.iter().zip(&covered);
            labels.filter(|(label, covered)| **label > 0.5 && !**covered).count()
        };
        let open = (0..order.len()).filter(|place| !chosen.contains(place));
        // The first of the largest: `max_by_key` gives the last.
        let Some(place) = open.rev().max_by_key(|&place| new(place)) else { break };
        for (covered, label) in covered.iter_mut().zip(&train[order[place]].labels) {
            *covered |= *label > 0.5;
        }
        chosen.push(place);
    }
    chosen.sort_unstable();
    chosen.into_iter().map(|place| order[place]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str, labels: [f32; 3]) -> Example {
        Example { id: String::new(), text: text.to_owned(), labels: labels.to_vec() }
    }

    #[test]
    fn every_label_comes_once_where_it_can() {
        let mut rows: Vec<Example> = (0..40).map(|index| row(&format!("t{index}"), [1.0, 0.0, 0.0])).collect();
        rows[17].labels = vec![0.0, 1.0, 0.0];
        rows[31].labels = vec![0.0, 0.0, 1.0];
        for seed in 0..5 {
            let chosen = choose(&rows, &[], 3, seed);
            assert!(chosen.len() == 3 && chosen.contains(&17) && chosen.contains(&31), "{chosen:?}");
            assert_eq!(chosen, choose(&rows, &[], 3, seed));
        }
        let different: HashSet<Vec<usize>> = (0..5).map(|seed| choose(&rows, &[], 3, seed)).collect();
        assert!(different.len() > 1);
        // One row with both comes before two with one.
        rows[8].labels = vec![0.0, 1.0, 1.0];
        assert!(choose(&rows, &[], 2, 1).contains(&8));
    }

    #[test]
    fn no_scored_text_and_no_text_twice_is_an_example() {
        let rows = [
            row("One", [1.0, 0.0, 0.0]),
            row("two", [1.0, 0.0, 0.0]),
            row("TWO ", [1.0, 0.0, 0.0]),
            row(" ", [0.0; 3]),
        ];
        let chosen = choose(&rows, &[row("one", [0.0; 3])], 9, 3);
        assert!(chosen == [1] || chosen == [2], "{chosen:?}");
    }
}
