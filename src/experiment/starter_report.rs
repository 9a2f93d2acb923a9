//! Output of `init`: the recognised columns, the flag that overrules each, and the table of labels. Lines fit 80
//! columns.

use super::starter_config::Starter;
use crate::console::{bytes, cell, counted};
use crate::data::formats::clip;
use crate::data::labelled::LabelCounts;
use crate::data::recognise::LabelForm;
use crate::data::table::abridged;

/// Lists the recognised columns and the flags that overrule them.
#[must_use]
pub fn found(starter: &Starter<'_>, counts: &LabelCounts, lengths: &[usize], is_exact: bool) -> String {
    let (recognised, choices) = (starter.recognised, starter.choices);
    let others = |names: &[String]| match names {
        [] => String::new(),
        names => format!("; also there: {}", abridged(names)),
    };
    let text = recognised.text.iter().map(|name| clip(name)).collect::<Vec<_>>().join(" + ");
    let form = match &recognised.form {
        LabelForm::Columns => format!("{} of 0 and 1", counted(recognised.labels.len(), "column")),
        LabelForm::List { column, listing } => {
            format!("{}: {}, {}", clip(column), counted(recognised.labels.len(), "label"), listing.describe())
        }
    };
    let kind = match (starter.is_single_label, counts.fewest == counts.most) {
        (true, _) => "single-label: exactly one a row".to_owned(),
        (false, true) => format!("multi-label: {} a row", counts.most),
        (false, false) if counts.without > 0 => {
            format!("multi-label: up to {} a row, {} rows without", counts.most, counts.without)
        }
        (false, false) => format!("multi-label: {} to {} a row", counts.fewest, counts.most),
    };
    let at = |share: f64| lengths.get((lengths.len().saturating_sub(1) as f64 * share) as usize).unwrap_or(&0);
    let about = if is_exact { "" } else { "about " };
    let length = format!(
        "{} tokens; texts have {about}{} in the median, {about}{} at 95%",
        choices.max_length,
        at(0.5),
        at(0.95)
    );
    let id = recognised.id.as_ref().map_or_else(|| "the row's number".to_owned(), |id| clip(id));
    let base = match choices.memory {
        Some(memory) => format!("{}; about {} to train", starter.model_name, bytes(memory)),
        None => starter.model_name.to_owned(),
    };
    let rows = [
        ("text", text + &others(&recognised.other_texts), "--text COLUMN"),
        ("id", id, "--id COLUMN"),
        ("labels", form + &others(&recognised.other_labels), "--labels COLUMN,… --label_separator TEXT"),
        ("kind", kind, "--problem_type multi|single"),
        ("length", length, "data.max_length"),
        ("base", base, "--model_name NAME"),
    ];
    let mut out = format!("{}\n", starter.source.display());
    for (name, what, flag) in rows {
        const FLAG_FROM: usize = 56;
        let line = format!("  {name:<8}{what}");
        let gap = FLAG_FROM.saturating_sub(line.chars().count());
        match gap {
            _ if flag.len() > 80 - FLAG_FROM || gap < 2 => out.push_str(&format!("{line}\n{:10}{flag}\n", "")),
            gap => out.push_str(&format!("{line}{}{flag}\n", " ".repeat(gap))),
        }
    }
    out
}

/// The labels with their rows in the three splits, the most frequent first, abridged.
#[must_use]
pub fn labels(names: &[String], counts: &[[usize; 3]], rows: [usize; 3]) -> String {
    const SHOWN: usize = 20;
    let total = rows.iter().sum::<usize>().max(1);
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by_key(|&label| std::cmp::Reverse(counts[label].iter().sum::<usize>()));
    let mut out =
        format!("\n{:<32}{:>8}{:>8}{:>8}{:>12}{:>8}\n", "label", "rows", "share", "train", "validation", "test");
    for &label in order.iter().take(SHOWN) {
        let [train, validation, test] = counts[label];
        let all = train + validation + test;
        let share = format!("{:.1}%", 100.0 * all as f64 / total as f64);
        out.push_str(&format!(
            "{:<32}{all:>8}{share:>8}{train:>8}{validation:>12}{test:>8}\n",
            cell(&names[label], 31)
        ));
    }
    if names.len() > SHOWN {
        out.push_str(&format!("and {} more labels\n", names.len() - SHOWN));
    }
    let [train, validation, test] = rows;
    out + &format!("{:<32}{total:>8}{:>8}{train:>8}{validation:>12}{test:>8}\n", "all rows", "")
}

/// Labels that training can hardly learn, or a split cannot score.
#[must_use]
pub fn doubts(names: &[String], counts: &[[usize; 3]], rows: [usize; 3]) -> Vec<String> {
    /// With fewer rows a label is seldom learned.
    const FEW: usize = 10;
    let named = |is_meant: &dyn Fn(&[usize; 3]) -> bool| -> Vec<String> {
        let meant = names.iter().zip(counts).filter(|(_, counts)| is_meant(counts));
        meant.map(|(name, counts)| format!("{} ({})", clip(name), counts.iter().sum::<usize>())).collect()
    };
    let mut doubts = Vec::new();
    let everywhere = named(&|counts| *counts == rows);
    if !everywhere.is_empty() {
        doubts.push(format!(
            "every row has these labels (rows in all): {}; is that the right column?",
            abridged(&everywhere)
        ));
    }
    let rare = named(&|counts| counts[0] + counts[1] + counts[2] < FEW);
    if !rare.is_empty() {
        doubts.push(format!(
            "{} of {} with fewer than {FEW} rows will hardly be learned: {}",
            rare.len(),
            counted(names.len(), "label"),
            abridged(&rare)
        ));
    }
    for (split, name) in [(0, "training"), (1, "validation"), (2, "test")] {
        let absent = named(&|counts| counts[split] == 0);
        if !absent.is_empty() {
            doubts.push(format!("no {name} row has these labels (rows in all): {}", abridged(&absent)));
        }
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_abridged_and_fits_a_terminal() {
        let names: Vec<String> =
            (0..1500).map(|label| format!("label {label} with\na name that is rather long")).collect();
        let counts: Vec<[usize; 3]> = (0..1500).map(|label| [label, label / 10, 1]).collect();
        let table = labels(&names, &counts, [100_000, 10_000, 10_000]);
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        assert_eq!(table.lines().count(), 24);
        assert!(table.contains("and 1480 more labels") && table.contains("label 1499 with a name that is…"), "{table}");
    }

    #[test]
    fn rare_labels_and_those_that_a_split_lacks_are_named() {
        let names = ["a", "b"].map(str::to_owned);
        let doubts = doubts(&names, &[[80, 10, 10], [3, 0, 1]], [80, 10, 10]);
        assert_eq!(doubts.len(), 3, "{doubts:?}");
        assert!(doubts[0].contains("a (100)"), "{doubts:?}");
        assert!(doubts[1].ends_with("b (4)") && doubts[2].contains("validation"), "{doubts:?}");
    }
}
