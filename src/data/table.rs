//! Rows of a file as examples, streamed.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::formats::{Quoting, Rows, clip};

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The id column's cell, or the row's number from 0.
    pub id: String,
    /// What the model reads.
    pub text: String,
    /// 0 or 1 for each label; empty if labels were not asked for.
    pub labels: Vec<f32>,
}

/// Which columns make an example.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    /// None: the row's number is the id.
    pub id: Option<String>,
    /// Joined to make the text; none: `text` is the text.
    pub text_fields: Option<Vec<String>>,
    /// The text, if there are no `text_fields`.
    pub text: String,
    /// Empty: labels are not read.
    pub labels: Vec<String>,
    /// The one column that lists a row's labels; none: each label has a column of 0 and 1.
    pub label_list: Option<LabelList>,
    /// How the cells of a CSV file are quoted.
    pub quoting: Quoting,
}

/// A column that lists a row's labels: a JSON list, or text with a separator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelList {
    /// Its name.
    pub column: String,
    /// Between labels.
    pub separator: String,
}

/// A file that gives one example a row.
pub struct Table {
    rows: Rows,
    id: Option<usize>,
    text: TextSource,
    labels: LabelSource,
    unknown: BTreeMap<String, usize>,
    count: usize,
}

enum TextSource {
    Fields(Vec<usize>),
    Column(usize),
}

enum LabelSource {
    Columns(Vec<usize>),
    List { column: usize, separator: String, places: HashMap<String, usize> },
}

impl Table {
    /// Opens a file (`-`: standard input) and finds its columns.
    ///
    /// # Errors
    /// If the file cannot be read, is empty, names a column twice, or lacks one; the error lists
    /// the columns that are there.
    pub fn open(path: &Path, columns: &Columns) -> Result<Self> {
        let rows = Rows::open(path, columns.quoting)?;
        let text = match &columns.text_fields {
            Some(fields) => TextSource::Fields(fields.iter().map(|field| rows.find(field)).collect::<Result<_>>()?),
            None => TextSource::Column(rows.find(&columns.text)?),
        };
        let id = columns.id.as_deref().map(|id| rows.find(id)).transpose()?;
        let labels = match &columns.label_list {
            Some(list) if !columns.labels.is_empty() => LabelSource::List {
                column: rows.find(&list.column)?,
                separator: list.separator.clone(),
                places: columns.labels.iter().cloned().zip(0..).collect(),
            },
            _ => LabelSource::Columns(columns.labels.iter().map(|label| rows.find(label)).collect::<Result<_>>()?),
        };
        Ok(Self { rows, id, text, labels, unknown: BTreeMap::new(), count: 0 })
    }

    /// Labels that rows listed and that were not asked for, with the number of rows of each.
    #[must_use]
    pub fn unknown_labels(&self) -> &BTreeMap<String, usize> {
        &self.unknown
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
        let labels = match &self.labels {
            LabelSource::Columns(columns) => columns.iter().map(|&column| self.label(column)).collect::<Result<_>>()?,
            LabelSource::List { column, separator, places } => {
                let mut labels = vec![0.0; places.len()];
                for label in self.rows.list(*column, separator)? {
                    match places.get(&label) {
                        Some(&place) => labels[place] = 1.0,
                        None => *self.unknown.entry(label).or_default() += 1,
                    }
                }
                labels
            }
        };
        self.count += 1;
        Ok(Some(Example { id, text, labels }))
    }

    fn label(&self, column: usize) -> Result<f32> {
        let cell = self.rows.text(column)?;
        parse_label(&cell).with_context(|| {
            let name = &self.rows.columns()[column];
            format!("{}: column `{name}` holds `{}`, expected 0 or 1", self.rows.place(), clip(&cell))
        })
    }
}

impl Iterator for Table {
    type Item = Result<Example>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_row().transpose()
    }
}

/// Reads at most `limit` rows; also gives [`Table::unknown_labels`].
///
/// # Errors
/// As [`Table::open`], or if a row is malformed, or if there is no row.
pub fn read_examples(
    path: &Path,
    columns: &Columns,
    limit: Option<usize>,
) -> Result<(Vec<Example>, BTreeMap<String, usize>)> {
    let mut table = Table::open(path, columns)?;
    let examples = table.by_ref().take(limit.unwrap_or(usize::MAX)).collect::<Result<Vec<_>>>()?;
    ensure!(!examples.is_empty(), "{}: has no rows", path.display());
    Ok((examples, table.unknown))
}

/// Labels that a file was found to have.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FoundLabels {
    /// Their names.
    pub labels: Vec<String>,
    /// What to tell of columns that look like labels and are not taken: most of their cells are 0 or 1.
    pub doubts: Vec<String>,
}

/// A column that may be a label.
struct Candidate {
    column: usize,
    flags: usize,
    /// Of the first cell that is neither 0 nor 1: its place and text.
    other: Option<(String, String)>,
}

/// The labels of a file: those that its list column names, or the columns that `columns` does not use
/// and that hold only 0 and 1.
///
/// # Errors
/// As [`Table::open`], or if there is none.
pub fn find_labels(path: &Path, columns: &Columns) -> Result<FoundLabels> {
    /// A column of which this part is 0 or 1 was probably meant as a label.
    const DOUBTFUL: f64 = 0.9;
    let mut rows = Rows::open(path, columns.quoting)?;
    if let Some(list) = &columns.label_list {
        let column = rows.find(&list.column)?;
        let mut labels = BTreeSet::new();
        while rows.advance()? {
            labels.extend(rows.list(column, &list.separator)?);
        }
        ensure!(!labels.is_empty(), "{}: column `{}` names no label", path.display(), list.column);
        return Ok(FoundLabels { labels: labels.into_iter().collect(), doubts: Vec::new() });
    }
    let mut is_used: HashSet<&String> = columns.id.iter().chain(columns.text_fields.iter().flatten()).collect();
    if columns.text_fields.is_none() {
        is_used.insert(&columns.text);
    }
    let mut candidates: Vec<Candidate> = (0..rows.columns().len())
        .filter(|&column| !is_used.contains(&rows.columns()[column]))
        .map(|column| Candidate { column, flags: 0, other: None })
        .collect();
    let mut count = 0;
    while rows.advance()? {
        count += 1;
        for Candidate { column, flags, other } in &mut candidates {
            let cell = rows.text(*column).unwrap_or_default();
            if parse_label(&cell).is_some() {
                *flags += 1;
            } else if other.is_none() {
                *other = Some((rows.place(), clip(&cell)));
            }
        }
    }
    let mut found = FoundLabels::default();
    for Candidate { column, flags, other } in candidates {
        let name = &rows.columns()[column];
        match other {
            None => found.labels.push(name.clone()),
            Some((place, cell)) if flags as f64 >= DOUBTFUL * count as f64 => found.doubts.push(format!(
                "column `{name}` is not taken as a label: {place} holds `{cell}`, where {flags} of {count} rows hold 0 or 1"
            )),
            Some(_) => {}
        }
    }
    let doubts: String = found.doubts.iter().map(|doubt| format!("; {doubt}")).collect();
    ensure!(
        !found.labels.is_empty(),
        "{}: no column holds only 0 and 1 beside the id and the text; name them in data.label_columns, or one column \
         that lists labels in data.labels_column. The file has {}{doubts}",
        path.display(),
        rows.columns().join(", ")
    );
    Ok(found)
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

fn parse_label(cell: &str) -> Option<f32> {
    match cell.trim() {
        "0" | "0.0" => Some(0.0),
        "1" | "1.0" => Some(1.0),
        other if other.eq_ignore_ascii_case("false") => Some(0.0),
        other if other.eq_ignore_ascii_case("true") => Some(1.0),
        _ => None,
    }
}

/// Checks that each row has exactly one label.
///
/// # Errors
/// Names the first row that has not.
pub fn check_single_label(path: &Path, examples: &[Example]) -> Result<()> {
    for example in examples {
        let count = example.labels.iter().filter(|&&label| label > 0.5).count();
        if count != 1 {
            bail!(
                "{}: row `{}` has {count} labels set; single_label_classification needs exactly one",
                path.display(),
                clip(&example.id)
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
            text_fields: None,
            text: "text".into(),
            labels: vec!["a".into(), "b".into()],
            label_list: None,
            quoting: Quoting::Standard,
        }
    }

    fn read(bytes: &[u8], columns: &Columns) -> Result<Vec<Example>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.csv");
        std::fs::write(&path, bytes).unwrap();
        read_examples(&path, columns, None).map(|(examples, _)| examples)
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
        assert!(doubt.contains("column `b`") && doubt.contains("t.csv:6 holds ``, where 19 of 20 rows"), "{doubt}");
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
        let list = LabelList { column: "tags".into(), separator: "|".into() };
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
            let (examples, unknown) = read_examples(&path, &asked, None).unwrap();
            let labels: Vec<&[f32]> = examples.iter().map(|example| &*example.labels).collect();
            assert_eq!(labels, [&[0.0, 1.0], &[0.0, 0.0], &[1.0, 1.0]], "{}", path.display());
            assert_eq!(examples.iter().map(|example| &*example.id).collect::<Vec<_>>(), ["7", "8", "9"]);
            assert_eq!(unknown.into_iter().collect::<Vec<_>>(), [("b".to_owned(), 1)]);
        }
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
            ("{\"id\": 1, \"text\": \"x\", \"a\": 1}\n", &["no column `b`", "`a`, `id`, `text`"]),
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
