//! Recognises the columns of a file of labelled texts: the text, the id, and the form of the labels.
//!
//! Names that people use decide first, then what the cells look like. What is asked for is never overruled.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::flag_columns::Candidates;
use super::formats::{Quoting, Rows};
use super::label_cell::LabelCell;
use super::list_column::{ListColumn, Listing};
use super::table::{Columns, LabelList, abridged, label_cell};

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

/// The flag of the text between labels.
const SEPARATOR: &str = "--label_separator";

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

/// Where the labels of a row stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelForm {
    /// A column of 0 and 1, or of yes and no, for each label.
    Columns,
    /// One column that lists them.
    List {
        column: String,
        /// The form of its lists.
        listing: Listing,
    },
}

/// The recognised columns of a file.
#[derive(Clone, Debug)]
pub struct Recognised {
    /// The column with the text, or those that are joined.
    pub text: Vec<String>,
    /// Columns that could be the text, too.
    pub other_texts: Vec<String>,
    /// The column with the id.
    pub id: Option<String>,
    /// The form of the labels.
    pub form: LabelForm,
    /// Names of the labels.
    pub labels: Vec<String>,
    /// Columns that could hold the labels, too.
    pub other_labels: Vec<String>,
    /// Warnings about things that look wrong.
    pub doubts: Vec<String>,
    quoting: Quoting,
}

impl Recognised {
    /// Looks at all rows of a file.
    ///
    /// # Errors
    /// If the file cannot be read, has no rows, or has no column for the text or the labels.
    pub fn of_file(path: &Path, asked: &Asked) -> Result<Self> {
        let survey = Survey::of(path, asked)?;
        let found = survey.find(asked).with_context(|| path.display().to_string())?;
        let mut recognised = Self {
            text: found.text,
            other_texts: found.other_texts,
            id: found.id,
            form: LabelForm::Columns,
            labels: found.flags,
            other_labels: found.other_labels,
            doubts: found.doubts,
            quoting: asked.quoting,
        };
        if let Some(column) = found.list {
            recognised.read_list(path, column, asked)?;
        }
        Ok(recognised)
    }

    fn read_list(&mut self, path: &Path, column: String, asked: &Asked) -> Result<()> {
        let rows = Rows::open(path, asked.quoting)?;
        let place = rows.find(&column)?;
        let mut rows = rows.only(&[place])?;
        let mut found = ListColumn::default();
        let mut texts = HashSet::new();
        while rows.advance()? {
            let cell = label_cell(&rows, place)?;
            found.add(&cell, || rows.location());
            if let LabelCell::Text(text) = cell {
                texts.insert(text);
            }
        }
        let mut findings = found.find((&column, SEPARATOR), asked.separator.as_deref(), &[])?;
        let separator = findings.listing.separator.clone();
        if asked.separator.is_none() && separator.as_deref() == Some(",") && never_recombine(&texts, ",") {
            // `Arts, Crafts` is a name, where neither part ever stands in another cell.
            findings = found.find((&column, SEPARATOR), unused_sign(&texts), &[])?;
        }
        findings.listing.check_names(&column, &asked.names, "--label_names FILE")?;
        self.labels = match findings.listing.multi_hot {
            Some(_) => asked.names.clone(),
            None => findings.labels.into_keys().collect(),
        };
        ensure!(!self.labels.is_empty(), "{}: column `{column}` contains no label", path.display());
        self.doubts.extend(findings.doubts);
        self.form = LabelForm::List { column, listing: findings.listing };
        Ok(())
    }

    /// The columns to read examples from.
    #[must_use]
    pub fn columns(&self) -> Columns {
        let (text, fields) = match self.text.as_slice() {
            [text] => (text.clone(), None),
            fields => (String::new(), Some(fields.to_vec())),
        };
        let label_list = match &self.form {
            LabelForm::Columns => None,
            LabelForm::List { column, listing } => {
                Some(LabelList { column: column.clone(), separator: listing.separator.clone(), order: None })
            }
        };
        Columns {
            id: self.id.clone(),
            id_may_be_absent: false,
            text_fields: fields,
            text,
            labels: self.labels.clone(),
            label_list,
            labels_were_found: false,
            quoting: self.quoting,
        }
    }
}

/// Returns true if no part of a text occurs in another text, though some texts have several parts.
fn never_recombine(texts: &HashSet<String>, sign: &str) -> bool {
    let mut seen = HashSet::new();
    texts.iter().all(|text| text.split(sign).map(str::trim).all(|part| seen.insert(part)))
}

/// A sign that no text holds: with it each text is one label.
fn unused_sign(texts: &HashSet<String>) -> Option<&'static str> {
    ["|", ";", "\t", "||", ";;", "\u{1f}"].into_iter().find(|sign| texts.iter().all(|text| !text.contains(sign)))
}

/// The cells of one column, counted.
#[derive(Debug, Default)]
struct Survey {
    columns: Vec<Column>,
    rows: usize,
    flags: HashSet<String>,
    words: HashSet<String>,
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
struct Found {
    text: Vec<String>,
    other_texts: Vec<String>,
    id: Option<String>,
    list: Option<String>,
    flags: Vec<String>,
    other_labels: Vec<String>,
    doubts: Vec<String>,
}

impl Survey {
    fn of(path: &Path, asked: &Asked) -> Result<Self> {
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
        Ok(Self { columns, rows: count, flags, words })
    }

    fn find(&self, asked: &Asked) -> Result<Found> {
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
                    bail!(
                        "--labels: column `{other}` holds other cells than 0 and 1, or yes and no; name one column that \
                         lists labels, or several of 0 and 1"
                    );
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
                    format!(
                        "no column looks like labels; name one that lists them, or columns of 0 and 1, with --labels \
                         COLUMN,…: {}",
                        abridged(&self.names(is_free))
                    )
                })?;
                found.list = Some(name(column));
            }
        }
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
fn words_of(name: &str) -> Vec<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn recognised(text: &str, asked: &Asked) -> Result<Recognised> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.csv");
        std::fs::write(&path, text).unwrap();
        Recognised::of_file(&path, asked)
    }

    /// A header and twelve rows.
    fn rows(header: &str, row: impl Fn(usize) -> String) -> String {
        (0..12).fold(format!("{header}\n"), |text, number| format!("{text}{}\n", row(number)))
    }

    #[test]
    fn names_and_cells_tell_what_a_column_is() {
        let tags = |number: usize| ["billing;bug", "bug", "", "login;billing"][number % 4];
        let text = rows("ticket_id,created,subject,body,tags", |n| {
            format!("T{n},2026-01-{n:02},a subject {n},a much longer body of the ticket number {n},{}", tags(n))
        });
        let found = recognised(&text, &Asked::default()).unwrap();
        assert_eq!((found.text.as_slice(), found.id.as_deref()), (&["body".to_owned()][..], Some("ticket_id")));
        assert_eq!(found.other_texts, ["subject"]);
        assert_eq!(found.labels, ["billing", "bug", "login"]);
        let LabelForm::List { column, listing } = found.form else { panic!("{:?}", found.form) };
        assert_eq!((column.as_str(), listing.separator.as_deref()), ("tags", Some(";")));
    }

    #[test]
    fn columns_of_flags_and_of_yes_and_no_are_labels() {
        let text = rows("uid,text,billing,login", |n| format!("{n},the words {n},{},{}", n % 2, n % 3 / 2));
        let found = recognised(&text, &Asked::default()).unwrap();
        assert_eq!((found.form, found.labels), (LabelForm::Columns, vec!["billing".to_owned(), "login".to_owned()]));
        let yes = |is: bool| if is { "yes" } else { "no" };
        let text = rows("note,urgent,spam", |n| format!("the words {n},{},{}", yes(n % 2 == 0), yes(n % 3 == 0)));
        let found = recognised(&text, &Asked::default()).unwrap();
        assert_eq!((found.form, found.labels), (LabelForm::Columns, vec!["urgent".to_owned(), "spam".to_owned()]));
        assert_eq!((found.text, found.id), (vec!["note".to_owned()], None));
    }

    #[test]
    fn a_comma_may_belong_to_a_name() {
        let text = rows("text,category", |n| {
            format!("the words {n},\"{}\"", ["Arts, Crafts", "Home, Garden", "Music"][n % 3])
        });
        let found = recognised(&text, &Asked::default()).unwrap();
        assert_eq!(found.labels, ["Arts, Crafts", "Home, Garden", "Music"]);
        let asked = Asked { separator: Some(",".into()), ..Asked::default() };
        assert_eq!(recognised(&text, &asked).unwrap().labels, ["Arts", "Crafts", "Garden", "Home", "Music"]);
    }

    #[test]
    fn what_is_asked_for_is_taken_and_what_is_missing_is_named() {
        let text =
            rows("a,b,kind", |n| format!("the words {n},other words and more words {n},{}", ["red", "sky"][n % 2]));
        let asked = Asked { text: vec!["a".into()], labels: vec!["kind".into()], ..Asked::default() };
        let found = recognised(&text, &asked).unwrap();
        assert_eq!((found.text, found.labels), (vec!["a".to_owned()], vec!["red".to_owned(), "sky".to_owned()]));
        let asked = Asked { labels: vec!["nope".into()], ..Asked::default() };
        let error = format!("{:#}", recognised(&text, &asked).unwrap_err());
        assert!(error.contains("no column `nope`") && error.contains("a, b, kind"), "{error}");
        let error = format!("{:#}", recognised("text\na b\nc d\n", &Asked::default()).unwrap_err());
        assert!(error.contains("--labels"), "{error}");
        assert_eq!(words_of("Ticket ID2-customerName"), ["ticket", "id2", "customer", "name"]);
    }
}
