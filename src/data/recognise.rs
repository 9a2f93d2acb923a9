//! Recognises the columns of a file of labelled texts: the text, the id, and the form of the labels.
//!
//! Names that people use decide first, then what the cells look like. What is asked for is never overruled.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};

pub use super::column_survey::Asked;
use super::column_survey::Survey;
use super::formats::{Quoting, Rows};
use super::label_cell::LabelCell;
use super::list_column::{ListColumn, Listing};
use super::table::{Columns, LabelList, label_cell};

/// The flag of the text between labels.
const SEPARATOR: &str = "--label_separator";

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

#[cfg(test)]
mod tests {
    use super::super::column_survey::words_of;
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
