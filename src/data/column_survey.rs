//! The columns of a file, by their names and by what their cells look like.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::flag_columns::{Candidates, not_taken};
use super::formats::{Quoting, Rows};
use super::label_cell::LabelCell;
use super::table::{Columns, abridged, label_cell};

/// Names of columns, those that decide first at the front.
const TEXT_NAMES: [&str; 20] = [
    "text",
    "body",
    "content",
    "message",
    "description",
    "comment",
    "review",
    "sentence",
    "document",
    "abstract",
    "utterance",
    "question",
    "query",
    "tweet",
    "post",
    "article",
    "note",
    "prompt",
    "input",
    "title",
];
const ID_NAMES: [&str; 9] = ["id", "uid", "uuid", "guid", "key", "index", "idx", "number", "nr"];
const LABEL_NAMES: [&str; 20] = [
    "labels",
    "label",
    "tags",
    "tag",
    "targets",
    "target",
    "target_ind",
    "categories",
    "category",
    "classes",
    "class",
    "topics",
    "topic",
    "genres",
    "genre",
    "intents",
    "intent",
    "sentiment",
    "emotions",
    "emotion",
];

/// Answers that the user gave by flags.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// One column with the text, or several that are joined.
    pub text: Vec<String>,
    /// The column with the id.
    pub id: Option<String>,
    /// One column that lists labels, or columns of 0 and 1.
    pub labels: Vec<String>,
    /// Between two labels of a cell.
    pub separator: Option<String>,
    /// Names for the places of multi-hot lists.
    pub names: Vec<String>,
    /// Quotes in CSV files.
    pub quoting: Quoting,
}

/// The cells of one column, counted.
#[derive(Debug, Default)]
pub(super) struct Survey {
    columns: Vec<Column>,
    rows: usize,
    flags: HashSet<String>,
    words: HashSet<String>,
    /// Columns that look like flags and are none, and why.
    doubts: Vec<(String, String)>,
}

#[derive(Debug, Default)]
struct Column {
    name: String,
    filled: usize,
    distinct: HashSet<u64>,
    /// Distinct parts between the usual signs.
    parts: HashSet<u64>,
    characters: usize,
    words: usize,
    numbers: usize,
    lists: usize,
    /// Cells that are neither text nor a list of labels.
    nested: usize,
}

/// Names of columns by what they are for.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) text: Vec<String>,
    pub(super) other_texts: Vec<String>,
    pub(super) id: Option<String>,
    pub(super) list: Option<String>,
    pub(super) flags: Vec<String>,
    pub(super) other_labels: Vec<String>,
    pub(super) doubts: Vec<String>,
}

impl Survey {
    pub(super) fn of(path: &Path, asked: &Asked) -> Result<Self> {
        let mut rows = Rows::open(path, asked.quoting)?;
        let name = |name: &String| Column { name: name.clone(), ..Column::default() };
        let mut columns: Vec<Column> = rows.columns().iter().map(name).collect();
        // No column is used yet: all may be labels.
        let mut candidates = Candidates::among(&rows, &Columns::default());
        let mut count = 0;
        while rows.advance()? {
            for (place, column) in columns.iter_mut().enumerate() {
                column.read(&rows, place)?;
            }
            candidates.read(&rows);
            count += 1;
        }
        ensure!(count > 0, "{}: has no rows", path.display());
        let flags = candidates.flags(&rows).into_iter().collect();
        let words = candidates.words(&rows).into_iter().collect();
        let doubts = candidates.doubts(&rows);
        Ok(Self { columns, rows: count, flags, words, doubts })
    }

    pub(super) fn find(&self, asked: &Asked) -> Result<Found> {
        for name in asked.text.iter().chain(&asked.id).chain(&asked.labels) {
            ensure!(
                self.columns.iter().any(|column| column.name == *name),
                "no column `{name}`; the file has {}",
                abridged(&self.names(|_| true))
            );
        }
        let mut found = Found { text: asked.text.clone(), id: asked.id.clone(), ..Found::default() };
        if found.id.is_none() {
            found.id = self.find_id(asked);
        }
        if !asked.labels.is_empty() {
            self.take_labels(asked, &mut found)?;
        }
        let named = self.named_labels(&found);
        if found.text.is_empty() {
            self.find_text(named, &mut found)?;
        }
        if asked.labels.is_empty() {
            self.find_labels(named, &mut found)?;
        }
        for name in found.list.iter().chain(&found.flags) {
            ensure!(!found.text.contains(name), "column `{name}` cannot be both text and label");
        }
        Ok(found)
    }

    fn names(&self, is_wanted: impl Fn(&Column) -> bool) -> Vec<&str> {
        self.columns.iter().filter(|column| is_wanted(column)).map(|column| column.name.as_str()).collect()
    }

    fn is_flag(&self, column: &Column) -> bool {
        self.flags.contains(&column.name)
    }

    /// A column with an id's name whose cells are all different.
    fn find_id(&self, asked: &Asked) -> Option<String> {
        let is_unique = |column: &&Column| column.filled == self.rows && column.distinct.len() == self.rows;
        let is_free = |column: &&Column| !asked.text.contains(&column.name) && !asked.labels.contains(&column.name);
        let unique: Vec<&Column> = self.columns.iter().filter(is_unique).filter(is_free).collect();
        let exact = ID_NAMES.iter().find_map(|name| unique.iter().find(|column| plain(&column.name) == *name));
        let ends_so =
            |column: &&&Column| words_of(&column.name).last().is_some_and(|word| is_any(word, &ID_NAMES[..4]));
        exact.or_else(|| unique.iter().find(ends_so)).map(|column| column.name.clone())
    }

    /// The labels that the user names.
    fn take_labels(&self, asked: &Asked, found: &mut Found) -> Result<()> {
        let is_flag = |name: &String| self.flags.contains(name) || self.words.contains(name);
        match asked.labels.as_slice() {
            [one] if !is_flag(one) => found.list = Some(one.clone()),
            several => {
                if let Some(other) = several.iter().find(|name| !is_flag(name)) {
                    match self.doubts.iter().find(|(name, _)| name == other) {
                        Some((_, why)) => bail!("--labels: column `{other}` cannot be read as 0 and 1: {why}"),
                        None => bail!(
                            "--labels: column `{other}` holds other cells than 0 and 1, or yes and no; name one column \
                             that lists labels, or several of 0 and 1"
                        ),
                    }
                }
                found.flags = several.to_vec();
            }
        }
        Ok(())
    }

    /// The column with a name that labels usually have, and whether the name is exactly that.
    fn named_labels(&self, found: &Found) -> Option<(&Column, bool)> {
        let is_free = |column: &&Column| {
            let name = &column.name;
            !found.text.contains(name) && found.id.as_ref() != Some(name) && !self.is_flag(column) && column.filled > 0
        };
        let free: Vec<&Column> = self.columns.iter().filter(is_free).collect();
        let exact = LABEL_NAMES.iter().find_map(|name| free.iter().find(|column| plain(&column.name) == *name));
        let has_word = |column: &&&Column| {
            column.may_list_labels() && words_of(&column.name).iter().any(|w| is_any(w, &LABEL_NAMES))
        };
        exact.map(|column| (*column, true)).or_else(|| free.iter().find(has_word).map(|column| (*column, false)))
    }

    fn find_text(&self, labels: Option<(&Column, bool)>, found: &mut Found) -> Result<()> {
        let is_free = |column: &&Column| {
            let name = &column.name;
            let is_label = labels.is_some_and(|(labels, _)| labels.name == *name) || found.list.as_ref() == Some(name);
            !is_label && found.id.as_ref() != Some(name) && !self.is_flag(column) && !self.words.contains(name)
        };
        let texts: Vec<&Column> = self.columns.iter().filter(is_free).filter(|column| column.may_be_text()).collect();
        let size = |column: &Column| (column.mean(column.words) >= 2.0, column.mean(column.characters));
        let larger = |a: &&&Column, b: &&&Column| size(a).partial_cmp(&size(b)).unwrap_or(std::cmp::Ordering::Equal);
        let longest = *texts.iter().max_by(larger).with_context(|| {
            format!("no column looks like a text; name it with --text COLUMN: {}", abridged(&self.names(|_| true)))
        })?;
        // A short column called `text` beside a long one is not the text.
        let is_long = |column: &&&Column| 4.0 * column.mean(column.characters) >= longest.mean(longest.characters);
        let named = |name: &&str| texts.iter().filter(is_long).find(|column| plain(&column.name) == **name).copied();
        let text = TEXT_NAMES.iter().find_map(named).unwrap_or(longest);
        let is_other = |column: &&&Column| {
            column.name != text.name && column.mean(column.words) >= 2.0 && 2 * column.distinct.len() > self.rows
        };
        found.other_texts = texts.iter().filter(is_other).map(|column| column.name.clone()).collect();
        found.text = vec![text.name.clone()];
        Ok(())
    }

    fn find_labels(&self, named: Option<(&Column, bool)>, found: &mut Found) -> Result<()> {
        let is_free = |column: &Column| !found.text.contains(&column.name) && found.id.as_ref() != Some(&column.name);
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let flags = owned(self.names(|column| self.is_flag(column) && is_free(column)));
        let words = owned(self.names(|column| self.words.contains(&column.name) && is_free(column)));
        // Texts that repeat are more like labels the fewer there are.
        let like = self.columns.iter().filter(|column| is_free(column) && column.may_list_labels());
        let like = like.filter(|column| 2 * column.parts.len() <= self.rows || column.lists > 0);
        let by_form = like.min_by_key(|column| (column.lists == 0, column.parts.len()));
        let name = |column: &Column| column.name.clone();
        match named {
            Some((column, true)) if flags.len() < 2 => {
                found.list = Some(name(column));
                found.other_labels = flags;
            }
            _ if !flags.is_empty() => {
                found.other_labels = named.map(|(column, _)| name(column)).into_iter().chain(words).collect();
                found.flags = flags;
            }
            Some((column, _)) => found.list = Some(name(column)),
            None if !words.is_empty() => found.flags = words,
            None => {
                let column = by_form.with_context(|| {
                    let doubts: String = self.doubts.iter().map(|doubt| format!("; {}", not_taken(doubt))).collect();
                    let others = self.names(is_free);
                    let others =
                        if others.is_empty() { String::new() } else { format!("; the file has {}", abridged(&others)) };
                    format!(
                        "no column looks like labels; name one that lists them, or columns of 0 and 1, with --labels \
                         COLUMN,…{others}{doubts}"
                    )
                })?;
                found.list = Some(name(column));
            }
        }
        let is_used = |name: &String| {
            let columns = [&found.text, &found.flags, &found.other_labels];
            columns.iter().any(|names| names.contains(name))
                || found.list.iter().chain(&found.id).any(|used| used == name)
        };
        found.doubts.extend(self.doubts.iter().filter(|(name, _)| !is_used(name)).map(not_taken));
        if let Some(list) = &found.list
            && self.flags.len() == 1
            && found.other_labels.is_empty()
        {
            found.doubts.extend(
                self.flags
                    .iter()
                    .filter(|flag| *flag != list)
                    .map(|flag| format!("column `{flag}` holds only 0 and 1 and is not used")),
            );
        }
        Ok(())
    }
}

impl Column {
    fn read(&mut self, rows: &Rows, place: usize) -> Result<()> {
        /// Longer cells list no labels.
        const LONGEST_LIST: usize = 400;
        let text = match rows.text(place) {
            Ok(text) => text,
            Err(_) => match label_cell(rows, place) {
                Ok(LabelCell::Items(items)) => {
                    self.filled += 1;
                    self.lists += 1;
                    self.parts.extend(items.iter().map(hash));
                    return Ok(());
                }
                Ok(_) => return Ok(()),
                Err(error) if rows.cell(place).is_err() => return Err(error),
                Err(_) => {
                    self.nested += 1;
                    return Ok(());
                }
            },
        };
        let text = text.trim();
        if text.is_empty() {
            return Ok(());
        }
        self.filled += 1;
        self.distinct.insert(hash(text));
        self.characters += text.chars().count();
        self.words += text.split_whitespace().count();
        self.numbers += usize::from(text.parse::<f64>().is_ok());
        if text.len() <= LONGEST_LIST {
            match LabelCell::of_text(text) {
                Ok(LabelCell::Items(items)) => {
                    self.lists += 1;
                    self.parts.extend(items.iter().map(hash));
                }
                _ => self.parts.extend(text.split([';', '|', ',']).map(|part| hash(part.trim()))),
            }
        } else {
            self.parts.insert(hash(text));
        }
        Ok(())
    }

    fn mean(&self, sum: usize) -> f64 {
        sum as f64 / self.filled.max(1) as f64
    }

    fn may_be_text(&self) -> bool {
        self.filled > 0 && 2 * self.numbers < self.filled && 2 * self.lists < self.filled && self.nested == 0
    }

    /// Returns true if its cells are lists, or short and not numbers.
    fn may_list_labels(&self) -> bool {
        const LONGEST: f64 = 80.0;
        let is_short = self.mean(self.characters) <= LONGEST && 2 * self.numbers < self.filled;
        self.filled > 0 && self.nested == 0 && (2 * self.lists >= self.filled || is_short)
    }
}

fn hash(text: impl AsRef<str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.as_ref().hash(&mut hasher);
    hasher.finish()
}

fn plain(name: &str) -> String {
    name.trim().to_lowercase()
}

/// The words of a column's name: `ticket_id`, `Ticket ID` and `ticketId` are two.
pub(super) fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for character in name.chars() {
        if !character.is_alphanumeric() || character.is_uppercase() && was_lower {
            words.push(String::new());
        }
        was_lower = character.is_lowercase();
        if character.is_alphanumeric() {
            let word = words.last_mut().expect("there is one");
            word.extend(character.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn is_any(word: &str, names: &[&str]) -> bool {
    names.contains(&word)
}
