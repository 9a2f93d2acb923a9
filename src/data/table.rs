//! Rows of a file as examples, streamed.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

pub use super::columns::{Columns, LabelList};
use super::exports;
use super::flag_columns::{Candidates, FlagColumns, not_taken};
use super::formats::{Rows, clip};
use super::label_cell::LabelCell;
use super::list_column::{ListColumn, Listing};

/// The key of the text between labels.
const SEPARATOR: &str = "data.label_separator";

/// A row with its labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The id column's cell, or the row's number from 0.
    pub id: String,
    /// The text that the model reads.
    pub text: String,
    /// 0 or 1 for each label; empty if labels were not asked for.
    pub labels: Vec<f32>,
}

impl Example {
    /// The row's name in errors. `row` counts from 0; the name counts from 1 and leaves out the header.
    #[must_use]
    pub fn location(&self, path: &Path, row: usize) -> String {
        /// An id may be a text of any length.
        const CHARACTERS: usize = 60;
        let id: String = self.id.chars().take(CHARACTERS).collect();
        format!("{}: row {} (id `{id}`)", path.display(), row + 1)
    }
}

/// A file that gives one example a row.
pub struct Table {
    rows: Rows,
    id: Option<usize>,
    text: TextSource,
    labels: LabelSource,
    others: Option<Candidates>,
    notes: Vec<String>,
    count: usize,
}

enum TextSource {
    Fields(Vec<usize>),
    Column(usize),
}

enum LabelSource {
    None,
    Columns(FlagColumns),
    /// Cells are kept until all are seen: what separates labels is found over the whole column.
    List {
        column: usize,
        found: Box<ListColumn>,
        cells: Vec<LabelCell>,
    },
}

impl Table {
    /// Opens a file (`-`: standard input) and finds its columns.
    ///
    /// # Errors
    /// If the file cannot be read, is empty, names a column twice, or lacks one; the error lists
    /// the columns that are there.
    pub fn open(path: &Path, columns: &Columns) -> Result<Self> {
        let rows = Rows::open(path, columns.quoting)?;
        exports::refuse(path, rows.columns())?;
        let mut notes = Vec::new();
        let text = match &columns.text_fields {
            Some(fields) => TextSource::Fields(fields.iter().map(|field| rows.find(field)).collect::<Result<_>>()?),
            None => TextSource::Column(rows.find(&columns.text).map_err(|error| {
                anyhow!("{error}; `--set data.target_text_column=NAME` reads the texts from another")
            })?),
        };
        let id = match &columns.id {
            Some(id) if columns.id_may_be_absent && !rows.columns().contains(id) => {
                notes.push(format!("{}: has no column `{id}`; ids are row numbers from 0", path.display()));
                None
            }
            id => id.as_deref().map(|id| rows.find(id)).transpose()?,
        };
        let labels =
            match &columns.label_list {
                _ if columns.labels.is_empty() => LabelSource::None,
                Some(list) => {
                    LabelSource::List { column: rows.find(&list.column)?, found: Box::default(), cells: Vec::new() }
                }
                None => {
                    let indices = columns.labels.iter().map(|label| rows.find(label)).collect::<Result<Vec<_>>>();
                    LabelSource::Columns(FlagColumns::new(indices.context(
                        "labels have a column each; if one column lists them, name it with data.labels_column",
                    )?))
                }
            };
        let others = columns.labels_were_found.then(|| Candidates::among(&rows, columns));
        Ok(Self { rows, id, text, labels, others, notes, count: 0 })
    }

    /// Notes about the file, known once it is open.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns true if the next row may take long to arrive.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.rows.is_paused()
    }

    /// Warnings of keys that rows lacked, for the rows that were read.
    #[must_use]
    pub fn absences(&self) -> Vec<String> {
        let used: Vec<usize> = match &self.text {
            TextSource::Column(column) => self.id.iter().chain([column]).copied().collect(),
            TextSource::Fields(fields) => self.id.iter().chain(fields).copied().collect(),
        };
        let labels: Vec<usize> = match &self.labels {
            LabelSource::Columns(columns) => columns.indices().collect(),
            LabelSource::None | LabelSource::List { .. } => Vec::new(),
        };
        let texts = self.rows.absence_warnings(&used, "read as empty");
        texts.chain(self.rows.absence_warnings(&labels, "counted as 0")).collect()
    }

    fn read_row(&mut self) -> Result<Option<Example>> {
        if !self.rows.advance()? {
            return Ok(None);
        }
        let text = match &self.text {
            TextSource::Column(column) => self.rows.text(*column)?.into_owned(),
            TextSource::Fields(fields) => {
                let parts = fields.iter().map(|&field| self.rows.text(field)).collect::<Result<Vec<_>>>()?;
                join_fields(&parts)
            }
        };
        let text = if text.is_empty() { " ".to_owned() } else { text };
        let id = match self.id {
            Some(column) => self.rows.text(column)?.into_owned(),
            None => self.count.to_string(),
        };
        let labels = match &mut self.labels {
            LabelSource::None => Vec::new(),
            LabelSource::Columns(columns) => columns.read(&self.rows)?,
            LabelSource::List { column, found, cells } => {
                let cell = label_cell(&self.rows, *column)?;
                found.add(&cell, || self.rows.location());
                cells.push(cell);
                Vec::new()
            }
        };
        if let Some(others) = &mut self.others {
            others.read(&self.rows);
        }
        self.count += 1;
        Ok(Some(Example { id, text, labels }))
    }

    /// Fills in what only the whole file tells, once all rows were read.
    fn finish(self, path: &Path, columns: &Columns, examples: Vec<Example>) -> Result<Examples> {
        let absences = self.absences();
        let mut read = Examples { examples, notes: self.notes, ..Examples::default() };
        match self.labels {
            LabelSource::None => {}
            LabelSource::Columns(flags) => flags.check(&self.rows)?,
            LabelSource::List { found, cells, .. } => {
                let list = columns.label_list.as_ref().context("labels are listed")?;
                read.fill(&list.column, list, columns, &found, &cells).with_context(|| path.display().to_string())?;
            }
        }
        for doubt in &mut read.doubts {
            doubt.insert_str(0, &format!("{}: ", path.display()));
        }
        read.doubts.extend(absences);
        for name in self.others.iter().flat_map(|others| others.flags(&self.rows)) {
            read.doubts.push(format!(
                "{}: column `{name}` holds only 0 and 1 but is not a label of the training rows; it is not used",
                path.display()
            ));
        }
        Ok(read)
    }
}

impl Iterator for Table {
    type Item = Result<Example>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_row().transpose()
    }
}

/// The rows of a file, and what there is to tell of them.
#[derive(Debug, Default)]
pub struct Examples {
    pub examples: Vec<Example>,
    /// Labels that rows list and that were not asked for, with the number of rows of each.
    pub unknown: BTreeMap<String, usize>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Warnings for the user.
    pub doubts: Vec<String>,
}

impl Examples {
    fn fill(
        &mut self,
        name: &str,
        list: &LabelList,
        columns: &Columns,
        found: &ListColumn,
        cells: &[LabelCell],
    ) -> Result<()> {
        let findings = found.find((name, SEPARATOR), list.separator.as_deref(), &columns.labels)?;
        let listing = findings.listing;
        let order = list.order.as_ref().unwrap_or(&columns.labels);
        listing.check_names(name, order, "data.label_columns")?;
        let indices: HashMap<&str, usize> = columns.labels.iter().map(String::as_str).zip(0..).collect();
        for (example, cell) in self.examples.iter_mut().zip(cells) {
            example.labels = vec![0.0; columns.labels.len()];
            if let Some(flags) = listing.flags(cell) {
                for (label, _) in order.iter().zip(flags).filter(|(_, flag)| *flag) {
                    example.labels[indices[label.as_str()]] = 1.0;
                }
                continue;
            }
            for label in listing.labels(cell) {
                match indices.get(label) {
                    Some(&index) => example.labels[index] = 1.0,
                    None => *self.unknown.entry(label.to_owned()).or_default() += 1,
                }
            }
        }
        let is_number = |label: &String| label.parse::<f64>().is_ok_and(f64::is_finite);
        let none_is_known = self.examples.iter().all(|example| example.labels.iter().all(|&label| label == 0.0));
        if let Some((first, _)) = self.unknown.first_key_value()
            && none_is_known
            && self.unknown.keys().all(is_number)
            && !order.iter().any(is_number)
        {
            bail!(
                "column `{name}` lists numbers alone, such as `{first}`, and the labels are names: {}; write the names, or \
                 lists of {} numbers 0 and 1, one a label in their order",
                abridged(order),
                order.len()
            );
        }
        if list.separator.is_none() && (listing.separator.is_some() || listing.multi_hot.is_some()) {
            self.notes.push(format!("labels in `{name}` are read {}", listing.describe()));
        }
        self.doubts.extend(findings.doubts);
        Ok(())
    }
}

/// Reads at most `limit` rows.
///
/// # Errors
/// As [`Table::open`], or if a row is malformed, or if there is no row.
pub fn read_examples(path: &Path, columns: &Columns, limit: Option<usize>) -> Result<Examples> {
    let mut table = Table::open(path, columns)?;
    let examples = table.by_ref().take(limit.unwrap_or(usize::MAX)).collect::<Result<Vec<_>>>()?;
    ensure!(!examples.is_empty(), "{}: has no rows", path.display());
    table.finish(path, columns, examples)
}

/// Labels that a file was found to have.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FoundLabels {
    /// Names of the labels.
    pub labels: Vec<String>,
    /// The form of the column that lists labels, if one does.
    pub listing: Listing,
    /// Warnings about columns and labels that look like mistakes.
    pub doubts: Vec<String>,
}

/// The labels of a file: those that its list column names, or the columns that `columns` does not use
/// and that hold only 0 and 1.
///
/// # Errors
/// As [`Table::open`], or if there is none.
pub fn find_labels(path: &Path, columns: &Columns) -> Result<FoundLabels> {
    let mut rows = Rows::open(path, columns.quoting)?;
    exports::refuse(path, rows.columns())?;
    if let Some(list) = &columns.label_list {
        let column = rows.find(&list.column)?;
        rows = rows.only(&[column])?;
        let mut found = ListColumn::default();
        while rows.advance()? {
            found.add(&label_cell(&rows, column)?, || rows.location());
        }
        let findings = found.find((&list.column, SEPARATOR), list.separator.as_deref(), &[])?;
        findings
            .listing
            .check_names(&list.column, &[], "data.label_columns")
            .with_context(|| path.display().to_string())?;
        ensure!(!findings.labels.is_empty(), "{}: column `{}` contains no label", path.display(), list.column);
        return Ok(FoundLabels {
            labels: findings.labels.into_keys().collect(),
            listing: findings.listing,
            doubts: findings.doubts,
        });
    }
    let mut candidates = Candidates::among(&rows, &Columns { labels: Vec::new(), ..columns.clone() });
    if let Some(places) = candidates.places() {
        rows = rows.only(&places)?;
    }
    let mut count = 0;
    while rows.advance()? {
        candidates.read(&rows);
        count += 1;
    }
    ensure!(count > 0, "{}: has no rows", path.display());
    let doubts = candidates.doubts(&rows).iter().map(not_taken).collect();
    let found = FoundLabels { labels: candidates.flags(&rows), doubts, ..FoundLabels::default() };
    if found.labels.is_empty() {
        let doubts: String = found.doubts.iter().map(|doubt| format!("; {doubt}")).collect();
        bail!(
            "{}: no column holds only 0 and 1 beside the id and the text; name them in data.label_columns, or one column \
             that lists labels in data.labels_column. The file has {}{doubts}{}",
            path.display(),
            abridged(rows.columns()),
            rows.other_separator()
        );
    }
    Ok(found)
}

/// A cell of a column that lists labels.
pub(crate) fn label_cell(rows: &Rows, column: usize) -> Result<LabelCell> {
    LabelCell::of_cell(rows.cell(column)?)
        .with_context(|| format!("{}: column `{}`", rows.location(), rows.columns()[column]))
}

/// Names for a message: the first twenty, or `none`.
#[must_use]
pub fn abridged<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| clip(&one_line(name.as_ref()))).collect();
    match names.len() {
        0 => "none".to_owned(),
        count if count > SHOWN => format!("{} and {} more", shown.join(", "), count - SHOWN),
        _ => shown.join(", "),
    }
}

/// A name that breaks no line.
fn one_line(name: &str) -> String {
    name.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t")
}

/// Each field trimmed, empty ones skipped, joined with ". ", and a "." at the end.
#[must_use]
pub fn join_fields(fields: &[Cow<'_, str>]) -> String {
    let mut text =
        fields.iter().map(|field| field.trim()).filter(|field| !field.is_empty()).collect::<Vec<_>>().join(". ");
    if !text.is_empty() && !text.ends_with('.') {
        text.push('.');
    }
    text
}

/// A text that was typed, as a row of a file would have it. `joins_fields`: rows are joined of several columns.
#[must_use]
pub fn typed_text(text: &str, joins_fields: bool) -> String {
    let text = if joins_fields { join_fields(&[Cow::Borrowed(text)]) } else { text.to_owned() };
    if text.is_empty() { " ".to_owned() } else { text }
}

/// Checks that each row has exactly one label.
///
/// # Errors
/// Names the first row that has not.
pub fn check_single_label(path: &Path, examples: &[Example]) -> Result<()> {
    for (row, example) in examples.iter().enumerate() {
        let count = example.labels.iter().filter(|&&label| label > 0.5).count();
        if count != 1 {
            bail!(
                "{} has {count} labels set; single_label_classification needs exactly one",
                example.location(path, row)
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Columns {
        Columns {
            id: Some("id".into()),
            text: "text".into(),
            labels: vec!["a".into(), "b".into()],
            ..Columns::default()
        }
    }

    fn read(bytes: &[u8], columns: &Columns) -> Result<Vec<Example>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.csv");
        std::fs::write(&path, bytes).unwrap();
        read_examples(&path, columns, None).map(|read| read.examples)
    }

    #[test]
    fn long_lists_of_names_are_abridged_to_one_line() {
        assert_eq!(abridged::<&str>(&[]), "none");
        assert_eq!(abridged(&["a", "b\nc"]), "a, b\\nc");
        let many: Vec<String> = (0..22).map(|index| index.to_string()).collect();
        assert!(abridged(&many).ends_with("18, 19 and 2 more"));
    }

    #[test]
    fn rows_become_examples_with_a_byte_order_mark_and_every_spelling_of_labels() {
        let csv = "\u{feff}id,text,a,b\n7,\"one, \"\"two\"\"\nthree\",1,0.0\n,,true,False\n";
        let examples = read(csv.as_bytes(), &columns()).unwrap();
        assert_eq!(examples[0].text, "one, \"two\"\nthree");
        assert_eq!((examples[0].id.as_str(), &examples[0].labels), ("7", &vec![1.0, 0.0]));
        assert_eq!((examples[1].text.as_str(), &examples[1].labels), (" ", &vec![1.0, 0.0]));
    }

    #[test]
    fn text_fields_join_trimmed_and_end_with_one_full_stop() {
        assert_eq!(join_fields(&[" a ".into(), "".into(), "b.".into()]), "a. b.");
        assert_eq!(join_fields(&["12".into(), "x".into()]), "12. x.");
        assert_eq!(join_fields(&["".into(), " ".into()]), "");
        let columns = Columns { id: None, text_fields: Some(vec!["id".into(), "text".into()]), ..columns() };
        let examples = read(b"id,text,a,b\n,,0,1\nx,y,0,1\n", &columns).unwrap();
        assert_eq!((examples[0].text.as_str(), examples[1].text.as_str()), (" ", "x. y."));
        assert_eq!((examples[0].id.as_str(), examples[1].id.as_str()), ("0", "1"));
    }

    #[test]
    fn bad_files_name_line_and_column() {
        for (csv, parts) in [
            (&b"id,text,a,b\n1,x,0,1\n2,y,2,0\n"[..], &["t.csv:3", "column `a` holds `2`, expected 0 or 1"][..]),
            (b"id,text,a,b\n1,\"x\ny\",0,1\n2,y,0\n", &["t.csv:4", "3 cells, the header 4"]),
            (b"id,text,a\n1,x,0\n", &["no column `b`", "`id`, `text`, `a`"]),
            (b"id,text,a,a\n", &["two columns are called `a`"]),
            (b"id,text,a,b\n1,\xff\xfe,0,1\n", &["t.csv:2", "column `text` is not valid UTF-8"]),
            (b"", &["is empty"]),
            (b"id,text,a,b\n", &["no rows"]),
        ] {
            let error = format!("{:#}", read(csv, &columns()).unwrap_err());
            for part in parts {
                assert!(error.contains(part), "{part} is not in: {error}");
            }
        }
    }

    #[test]
    fn labels_are_found_among_the_columns_that_are_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.csv");
        std::fs::write(&path, "id,text,a,year,b\n0,1,1,1999,0\n1,0,0,2000,1.0\n").unwrap();
        let unlabelled = Columns { labels: vec![], ..columns() };
        assert_eq!(find_labels(&path, &unlabelled).unwrap().labels, ["a", "b"]);
        // One cell in twenty is missing: not a label, and not without a word.
        let rows: String = (0..20).map(|row| format!("{row},x,1,{}\n", if row == 4 { "" } else { "0" })).collect();
        std::fs::write(&path, format!("id,text,a,b\n{rows}")).unwrap();
        let found = find_labels(&path, &unlabelled).unwrap();
        assert_eq!(found.labels, ["a"]);
        let [doubt] = &found.doubts[..] else { panic!("{found:?}") };
        assert!(
            doubt.contains("column `b`") && doubt.contains("`0` and empty cells") && doubt.contains("t.csv:6"),
            "{doubt}"
        );
    }

    #[test]
    fn tabs_and_semicolons_separate_cells_where_the_header_has_no_comma() {
        for separator in ["\t", ";"] {
            let csv = format!(
                "\u{feff}id{separator}text{separator}a{separator}b\r\n7{separator}one, two{separator}1{separator}0\r\n"
            );
            let examples = read(csv.as_bytes(), &columns()).unwrap();
            assert_eq!((&*examples[0].text, &*examples[0].labels), ("one, two", &[1.0, 0.0][..]));
        }
    }

    #[test]
    fn labels_may_be_listed_in_one_column() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let list = LabelList { column: "tags".into(), separator: Some("|".into()), order: None };
        let columns = Columns { labels: vec![], label_list: Some(list), ..columns() };
        for path in [
            write("t.csv", "id,text,tags\n7,x,b | a\n8,y,\n9,z,\"[\"\"c\"\", \"\"a\"\"]\"\n"),
            write(
                "t.jsonl",
                "{\"id\": 7, \"text\": \"x\", \"tags\": [\"b\", \"a\"]}\n\n{\"id\": 8, \"text\": \"y\", \"tags\": null}\n\
                 {\"id\": \"9\", \"text\": \"z\", \"tags\": \"c|a\"}\n",
            ),
        ] {
            assert_eq!(find_labels(&path, &columns).unwrap().labels, ["a", "b", "c"]);
            let asked = Columns { labels: vec!["c".into(), "a".into()], ..columns.clone() };
            let Examples { examples, unknown, .. } = read_examples(&path, &asked, None).unwrap();
            let labels: Vec<&[f32]> = examples.iter().map(|example| &*example.labels).collect();
            assert_eq!(labels, [&[0.0, 1.0], &[0.0, 0.0], &[1.0, 1.0]], "{}", path.display());
            assert_eq!(examples.iter().map(|example| &*example.id).collect::<Vec<_>>(), ["7", "8", "9"]);
            assert_eq!(unknown.into_iter().collect::<Vec<_>>(), [("b".to_owned(), 1)]);
        }
    }

    #[test]
    fn a_row_that_has_not_exactly_one_label_is_named_by_number_and_id() {
        let example = |id: &str, labels: &[f32]| Example { id: id.into(), text: "x".into(), labels: labels.into() };
        let examples = [example("k1", &[0.0, 1.0]), example("k2", &[1.0, 1.0])];
        check_single_label(Path::new("t.csv"), &examples[..1]).unwrap();
        let error = check_single_label(Path::new("t.csv"), &examples).unwrap_err().to_string();
        assert!(error.contains("t.csv: row 2 (id `k2`) has 2 labels set"), "{error}");
    }

    #[test]
    fn bad_lines_of_json_name_their_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.jsonl");
        for (text, parts) in [
            (
                "{\"id\": 1, \"text\": \"x\", \"a\": 0, \"b\": 1}\n{\"id\": 2,\n",
                &["t.jsonl:2", "not a JSON object"][..],
            ),
            ("{\"id\": 1, \"text\": [\"x\"], \"a\": 0, \"b\": 1}\n", &["t.jsonl:1", "`text` holds a list"]),
            ("{\"id\": 1, \"text\": \"x\", \"a\": 2, \"b\": 1}\n", &["t.jsonl:1", "column `a` holds `2`"]),
            ("{\"id\": 1, \"text\": \"x\", \"a\": 1}\n", &["no column `b`", "`id`, `text`, `a`"]),
            ("{\"id\": 1, \"text\": \"x\", \"a\": tru}\n", &["t.jsonl:1", "expected true, false or null"]),
            ("\n", &["is empty"]),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", read_examples(&path, &columns(), None).unwrap_err());
            for part in parts {
                assert!(error.contains(part), "{part} is not in: {error}");
            }
        }
    }
}
