//! A column that lists labels: what separates them, found over the whole column, and what looks wrong.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Result, bail, ensure};

use super::formats::clip;
use super::label_cell::LabelCell;

/// Signs that separate labels, where none is given; a tie goes to the one that names hold least.
const SEPARATORS: [&str; 3] = ["|", ";", ","];

/// Signs that are only suspected: names hold them, too. The last ones need stronger evidence.
const SUSPECTS: [&str; 28] = [
    "|", ";", ",", "<br>", "<br/>", "<br />", " · ", " • ", "#", "\r\n", "\n", "\t", " / ", "::", "，", "；", "、",
    "،", "؛", "\\", "~", "/", " & ", "&", "+", ":", " and ", " ",
];
const WEAK_SUSPECTS: [&str; 7] = ["/", " & ", "&", "+", ":", " and ", " "];

/// The cells of a column that lists labels.
#[derive(Debug, Default)]
pub struct ListColumn {
    cells: usize,
    missing: usize,
    filled: usize,
    /// Labels of cells that tell them apart themselves, and in how many such cells each stands.
    items: HashMap<String, usize>,
    item_cells: usize,
    /// Lists of at least two numbers 0 and 1, and the length that all of them have.
    flag_cells: usize,
    flag_length: Option<usize>,
    lengths_differ: bool,
    /// Each text, and how many cells hold it.
    texts: HashMap<String, usize>,
    broken: Option<(String, String)>,
}

/// The form of a column that lists labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Between the labels of a text; none: each text is one label.
    pub separator: Option<String>,
    /// Numbers in each list, if lists hold a 0 or 1 for each label.
    pub multi_hot: Option<usize>,
}

/// The result of inspecting a column.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub listing: Listing,
    /// Its labels, and how many cells name each.
    pub labels: BTreeMap<String, usize>,
    /// Warnings about labels that look wrong.
    pub doubts: Vec<String>,
}

impl ListColumn {
    /// Takes in a cell; `location` tells where it stands.
    pub fn add(&mut self, cell: &LabelCell, location: impl FnOnce() -> String) {
        self.cells += 1;
        match cell {
            LabelCell::Missing => self.missing += 1,
            LabelCell::Empty => {}
            LabelCell::Items(items) => {
                self.filled += 1;
                self.item_cells += 1;
                if items.len() >= 2 && items.iter().all(|item| flag(item).is_some()) {
                    self.flag_cells += 1;
                    let length = *self.flag_length.get_or_insert(items.len());
                    self.lengths_differ |= length != items.len();
                }
                for label in distinct(items) {
                    count(&mut self.items, label, 1);
                }
            }
            LabelCell::Text(text) => {
                self.filled += 1;
                count(&mut self.texts, text, 1);
            }
            LabelCell::Broken(text) => {
                self.filled += 1;
                self.broken.get_or_insert_with(|| (location(), clip(text)));
                count(&mut self.texts, text, 1);
            }
        }
    }

    /// Finds how the column is to be read. A separator that is given is used as it is; `known` labels, if
    /// there are any, help to find one. Messages use the column's `name`, and `setting` for the key or flag of
    /// the separator.
    ///
    /// # Errors
    /// If a cell starts as a list and is none, and no separator is given.
    pub fn find(&self, (name, setting): (&str, &str), given: Option<&str>, known: &[String]) -> Result<Findings> {
        let mut findings = Findings::default();
        if let (None, Some((location, text))) = (given, &self.broken) {
            bail!(
                "{location}: column `{name}` holds `{text}`, which starts like a list but is neither JSON nor Python; write \
                 [\"a\", \"b\"], or set {setting}, which takes the text as it is"
            );
        }
        findings.listing.separator = match given {
            Some(separator) => Some(separator.to_owned()),
            None => self.find_separator(known, (name, setting), &mut findings.doubts),
        };
        findings.listing.multi_hot = self.multi_hot(findings.listing.separator.as_deref());
        findings.labels = self.labels(findings.listing.separator.as_deref());
        if self.missing > 0 && self.missing < self.cells {
            findings.doubts.push(format!(
                "rows without the key `{name}`, which count as rows without labels: {} of {}",
                self.missing, self.cells
            ));
        }
        if findings.listing.multi_hot.is_none() {
            self.doubt_labels((name, setting), &mut findings);
        }
        Ok(findings)
    }

    fn find_separator(
        &self,
        known: &[String],
        (name, setting): (&str, &str),
        doubts: &mut Vec<String>,
    ) -> Option<String> {
        let present: Vec<&str> =
            SEPARATORS.into_iter().filter(|sign| self.texts.keys().any(|text| text.contains(sign))).collect();
        if present.is_empty() {
            return None;
        }
        let known: HashSet<&str> = known.iter().map(String::as_str).collect();
        let cost = |separator: Option<&str>| {
            let labels = self.labels(separator);
            let unknown = labels.iter().filter(|(label, _)| !known.contains(label.as_str())).map(|(_, rows)| rows);
            (if known.is_empty() { 0 } else { unknown.sum::<usize>() }, labels.len())
        };
        let best = present.iter().copied().min_by_key(|&sign| cost(Some(sign)))?;
        if self.multi_hot(Some(best)).is_some() {
            return Some(best.to_owned());
        }
        // Where other cells, or the classifier, tell the labels, a sign may belong to a name.
        let has_reference = !known.is_empty() || self.item_cells > 0;
        if has_reference && cost(None) <= cost(Some(best)) {
            return None;
        }
        if present.len() > 1 {
            let others: Vec<String> = present.iter().filter(|&&sign| sign != best).map(|sign| shown(sign)).collect();
            doubts.push(format!(
                "cells of `{name}` hold {} and {}; labels are separated by {} alone. Set {setting} if that is \
                 wrong",
                shown(best),
                others.join(" and "),
                shown(best)
            ));
        } else if known.is_empty() && self.always_together(best) {
            doubts.push(format!(
                "labels of `{name}` are separated by {}, and each stands in one combination only: if the sign belongs to \
                 the names, set {setting} to one that does not occur",
                shown(best)
            ));
        }
        Some(best.to_owned())
    }

    /// Returns true if no part of a text occurs in another text, though some texts have several parts.
    fn always_together(&self, sign: &str) -> bool {
        let mut seen: HashSet<&str> = self.items.keys().map(String::as_str).collect();
        self.texts.keys().all(|text| split(text, Some(sign)).iter().all(|part| seen.insert(part)))
    }

    fn multi_hot(&self, separator: Option<&str>) -> Option<usize> {
        let mut length = self.flag_length;
        if self.lengths_differ || self.items.keys().any(|item| flag(item).is_none()) {
            return None;
        }
        // Lists of other lengths than the flags', such as `[0]`, list numbers. Empty ones have no labels.
        if self.item_cells > self.flag_cells && self.items_outside_flags() {
            return None;
        }
        for text in self.texts.keys() {
            let flags = flags_of_text(text, separator)?;
            if *length.get_or_insert(flags) != flags {
                return None;
            }
        }
        length.filter(|&length| length >= 2)
    }

    fn items_outside_flags(&self) -> bool {
        let most = self.items.values().max().copied().unwrap_or(0);
        // A cell that is no list of flags and not empty adds to an item's count.
        self.items.values().sum::<usize>() > 2 * self.flag_cells || most > self.flag_cells
    }

    fn labels(&self, separator: Option<&str>) -> BTreeMap<String, usize> {
        let mut labels: BTreeMap<String, usize> = self.items.iter().map(|(item, rows)| (item.clone(), *rows)).collect();
        for (text, rows) in &self.texts {
            for part in split(text, separator).into_iter().collect::<HashSet<_>>() {
                match labels.get_mut(part) {
                    Some(count) => *count += rows,
                    None => drop(labels.insert(part.to_owned(), *rows)),
                }
            }
        }
        labels
    }

    fn doubt_labels(&self, (name, setting): (&str, &str), findings: &mut Findings) {
        let labels = &findings.labels;
        let odd: Vec<&str> =
            labels.keys().map(String::as_str).filter(|label| label.contains(['{', '[', '"', '|', ';'])).collect();
        if let Some(first) = odd.first() {
            findings.doubts.push(format!(
                "{} of {} labels of `{name}` hold a sign that separates or encloses labels, such as `{}`; check \
                 {setting}",
                odd.len(),
                labels.len(),
                clip(first)
            ));
        } else if let Some((sign, cells, parts)) = self.suspect(labels) {
            findings.doubts.push(format!(
                "{cells} labels of `{name}` hold {sign}, and splitting there makes {parts} labels of {}; set \
                 {setting} to {sign} if it separates labels",
                labels.len(),
                sign = shown(sign),
            ));
        }
        let once = labels.values().filter(|&&rows| rows == 1).count();
        if labels.len() >= 10 && 2 * labels.len() > self.filled && 2 * once > labels.len() {
            findings.doubts.push(format!(
                "`{name}` names {} labels in {} rows, and {once} of them once; check that this column lists labels, and \
                 {setting}",
                labels.len(),
                self.filled
            ));
        }
        const ABSENT: [&str; 8] = ["nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat"];
        let absent = labels.keys().find(|label| ABSENT.contains(&label.to_lowercase().as_str()));
        if let Some(label) = absent {
            findings.doubts.push(format!(
                "`{label}` counts as a label of `{name}`; if it stands for no label, leave those cells empty"
            ));
        }
        let mut folded: HashMap<String, &str> = HashMap::new();
        for label in labels.keys() {
            let plain = label.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
            if let Some(other) = folded.insert(plain, label) {
                findings.doubts.push(format!(
                    "labels `{}` and `{}` of `{name}` differ in case or spaces only, and are two labels",
                    clip(other),
                    clip(label)
                ));
                break;
            }
        }
    }

    /// A sign that probably separates labels and was not taken for one: parts come up in several labels.
    /// Returns it, how many labels hold it, and how many labels splitting would leave.
    fn suspect<'a>(&self, labels: &'a BTreeMap<String, usize>) -> Option<(&'static str, usize, usize)> {
        let names: Vec<&'a str> = labels.keys().map(String::as_str).collect();
        let evidence = |sign: &'static str| {
            let holding = names.iter().filter(|name| split(name, Some(sign)).len() >= 2).count();
            if holding == 0 {
                return None;
            }
            let mut parts: HashMap<&str, usize> = HashMap::new();
            names.iter().flat_map(|name| split(name, Some(sign))).for_each(|part| *parts.entry(part).or_default() += 1);
            let is_shared = parts.values().any(|&names| names >= 2);
            // Numbers hold no spaces: `1 3 5` lists three.
            let are_numbers = sign == " " && parts.keys().all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
            let is_fewer = if WEAK_SUSPECTS.contains(&sign) && !are_numbers {
                10 * parts.len() <= 7 * names.len()
            } else {
                parts.len() <= names.len()
            };
            (is_shared && is_fewer).then_some((sign, holding, parts.len()))
        };
        SUSPECTS.into_iter().filter_map(evidence).min_by_key(|(_, _, parts)| *parts)
    }
}

impl Listing {
    /// The labels of a cell.
    #[must_use]
    pub fn labels<'a>(&self, cell: &'a LabelCell) -> Vec<&'a str> {
        match cell {
            LabelCell::Missing | LabelCell::Empty => Vec::new(),
            LabelCell::Items(items) => items.iter().map(String::as_str).collect(),
            LabelCell::Text(text) | LabelCell::Broken(text) => split(text, self.separator.as_deref()),
        }
    }

    /// The flags of a multi-hot cell; `None` if the column is not multi-hot.
    #[must_use]
    pub fn flags(&self, cell: &LabelCell) -> Option<Vec<bool>> {
        let length = self.multi_hot?;
        Some(match cell {
            LabelCell::Missing | LabelCell::Empty => vec![false; length],
            LabelCell::Items(items) if items.is_empty() => vec![false; length],
            LabelCell::Items(items) => items.iter().filter_map(|item| flag(item)).collect(),
            LabelCell::Text(text) | LabelCell::Broken(text) => {
                parts_of_flags(text, self.separator.as_deref()).into_iter().filter_map(flag).collect()
            }
        })
    }

    /// The separation of labels, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match (&self.separator, self.multi_hot) {
            (_, Some(length)) => format!("as multi-hot lists of {length}"),
            (Some(separator), None) => format!("separated by {}", shown(separator)),
            (None, None) => "in lists, or one in a cell".to_owned(),
        }
    }

    /// Checks that the lists of a multi-hot column are as long as there are labels.
    ///
    /// # Errors
    /// If they are not; `key` names the labels.
    pub fn check_names(&self, column: &str, names: &[String], key: &str) -> Result<()> {
        let Some(length) = self.multi_hot else { return Ok(()) };
        ensure!(
            !names.is_empty(),
            "column `{column}` holds multi-hot lists of {length} numbers 0 and 1, which do not name their labels; name all \
             {length} in their order with {key}"
        );
        ensure!(
            names.len() == length,
            "column `{column}` holds multi-hot lists of {length} numbers 0 and 1, and there are {} labels; name all {length} \
             in their order with {key}",
            names.len()
        );
        Ok(())
    }
}

/// 0 or 1, as text.
fn flag(item: &str) -> Option<bool> {
    super::columns::parse_label(item).map(|label| label > 0.5)
}

fn parts_of_flags<'a>(text: &'a str, separator: Option<&str>) -> Vec<&'a str> {
    let parts = split(text, separator);
    if parts.len() > 1 { parts } else { text.split_whitespace().collect() }
}

/// Counts the numbers 0 and 1 in a text, if it lists nothing else.
fn flags_of_text(text: &str, separator: Option<&str>) -> Option<usize> {
    let parts = parts_of_flags(text, separator);
    (parts.len() >= 2 && parts.iter().all(|part| flag(part).is_some())).then_some(parts.len())
}

fn split<'a>(text: &'a str, separator: Option<&str>) -> Vec<&'a str> {
    match separator {
        Some(separator) => text.split(separator).map(str::trim).filter(|part| !part.is_empty()).collect(),
        None => vec![text],
    }
}

fn distinct(items: &[String]) -> Vec<&String> {
    let mut seen = HashSet::new();
    items.iter().filter(|item| seen.insert(*item)).collect()
}

fn count(counts: &mut HashMap<String, usize>, key: &str, rows: usize) {
    match counts.get_mut(key) {
        Some(count) => *count += rows,
        None => drop(counts.insert(key.to_owned(), rows)),
    }
}

/// A separator in a message.
fn shown(sign: &str) -> String {
    match sign {
        "\n" => "a line break (\"\\n\" in YAML, $'\\n' in a shell)".to_owned(),
        "\r\n" => "a line break (\"\\r\\n\" in YAML, $'\\r\\n' in a shell)".to_owned(),
        "\t" => "a tab (\"\\t\" in YAML, $'\\t' in a shell)".to_owned(),
        " " => "` ` (a space)".to_owned(),
        sign => format!("`{sign}`"),
    }
}
