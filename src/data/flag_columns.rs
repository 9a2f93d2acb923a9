//! Columns of 0 and 1, one a label: which columns of a file are some, and their cells.

use anyhow::{Context, Result, bail, ensure};

use super::columns::{Columns, parse_label, used_columns};
use super::formats::{Rows, clip};

/// Words for yes and no that are read where a label's column is named, and not taken for labels by themselves.
/// The last of each are the TRUE and FALSE of spreadsheets in other languages.
const YES: [&str; 17] =
    ["yes", "y", "t", "x", "on", "✓", "✔", "ja", "j", "oui", "si", "sí", "sim", "wahr", "vrai", "verdadero", "vero"];
const NO: [&str; 11] = ["no", "n", "f", "off", "nein", "non", "não", "falsch", "faux", "falso", "falsk"];

/// A cell of a label's column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Yes,
    No,
    Blank,
}

impl Mark {
    fn of(cell: &str) -> Option<Self> {
        match parse_label(cell) {
            Some(label) if label > 0.5 => return Some(Self::Yes),
            Some(_) => return Some(Self::No),
            None => {}
        }
        let cell = cell.trim();
        let is_any = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(cell));
        match () {
            () if cell.is_empty() => Some(Self::Blank),
            () if is_any(&YES) => Some(Self::Yes),
            () if is_any(&NO) => Some(Self::No),
            () => None,
        }
    }
}

/// The columns of the labels that were asked for.
#[derive(Debug)]
pub(super) struct FlagColumns(Vec<FlagColumn>);

#[derive(Debug)]
struct FlagColumn {
    column: usize,
    has_yes: bool,
    has_no: bool,
    /// The first empty cell. It means no, but not beside cells that say so.
    blank: Option<String>,
}

impl FlagColumns {
    pub(super) fn new(columns: Vec<usize>) -> Self {
        let flags = |column| FlagColumn { column, has_yes: false, has_no: false, blank: None };
        Self(columns.into_iter().map(flags).collect())
    }

    /// Indices of the columns in the file.
    pub(super) fn indices(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|flags| flags.column)
    }

    /// The labels of the current row.
    pub(super) fn read(&mut self, rows: &Rows) -> Result<Vec<f32>> {
        let mut labels = Vec::with_capacity(self.0.len());
        for flags in &mut self.0 {
            let cell = rows.text(flags.column)?;
            let mark = Mark::of(&cell).with_context(|| {
                let name = &rows.columns()[flags.column];
                format!("{}: column `{name}` holds `{}`, expected 0 or 1", rows.location(), clip(&cell))
            })?;
            match mark {
                Mark::Yes => flags.has_yes = true,
                Mark::No => flags.has_no = true,
                Mark::Blank => drop(flags.blank.get_or_insert_with(|| rows.location())),
            }
            labels.push(if mark == Mark::Yes { 1.0 } else { 0.0 });
        }
        Ok(labels)
    }

    /// Checks that empty cells can mean no.
    ///
    /// # Errors
    /// If a column also says no in other cells, or no column says anything.
    pub(super) fn check(&self, rows: &Rows) -> Result<()> {
        let is_mute = self.0.iter().all(|flags| !flags.has_yes && !flags.has_no);
        let some_say_no = self.0.iter().any(|flags| flags.has_no);
        for flags in &self.0 {
            let Some(location) = &flags.blank else { continue };
            let name = &rows.columns()[flags.column];
            if flags.has_no {
                bail!(
                    "{location}: column `{name}` is empty here and says 0 or no in other rows; expected 0 or 1 in each, or \
                     empty cells alone for 0"
                );
            }
            ensure!(
                flags.has_yes || !(is_mute || some_say_no),
                "{location}: column `{name}` is empty in every row; write 0 in rows without the label"
            );
        }
        Ok(())
    }
}

/// Columns that may be labels.
#[derive(Debug)]
pub(super) struct Candidates {
    columns: Vec<Candidate>,
    rows: usize,
}

#[derive(Debug)]
struct Candidate {
    column: usize,
    /// Cells of 0 and 1.
    flags: usize,
    has_one: bool,
    has_no: bool,
    has_blank: bool,
    /// True if a cell says neither yes nor no.
    has_other: bool,
    holds_lists: bool,
    /// Different cells, the first few.
    shown: Vec<String>,
    /// The first cell that is neither 0 nor 1: its location and text.
    first: Option<(String, String)>,
}

impl Candidates {
    /// The columns that `columns` does not use.
    pub(super) fn among(rows: &Rows, columns: &Columns) -> Self {
        let used = used_columns(columns);
        let is_free = |name: &String| !used.contains(name.as_str()) && !columns.labels.contains(name);
        let free = (0..rows.columns().len()).filter(|&column| is_free(&rows.columns()[column]));
        let candidate = |column| Candidate {
            column,
            flags: 0,
            has_one: false,
            has_no: false,
            has_blank: false,
            has_other: false,
            holds_lists: false,
            shown: Vec::new(),
            first: None,
        };
        Self { columns: free.map(candidate).collect(), rows: 0 }
    }

    /// Where the columns stand; none if there are none.
    pub(super) fn places(&self) -> Option<Vec<usize>> {
        let places: Vec<usize> = self.columns.iter().map(|candidate| candidate.column).collect();
        (!places.is_empty()).then_some(places)
    }

    /// Looks at the current row.
    pub(super) fn read(&mut self, rows: &Rows) {
        self.rows += 1;
        for candidate in &mut self.columns {
            candidate.read(rows);
        }
    }

    /// Names of columns that hold only 0 and 1.
    pub(super) fn flags(&self, rows: &Rows) -> Vec<String> {
        let flags = self.columns.iter().filter(|candidate| candidate.first.is_none() && self.rows > 0);
        flags.map(|candidate| rows.columns()[candidate.column].clone()).collect()
    }

    /// Names of columns that hold words for yes and no, or marks and empty cells, and can be read as 0 and 1.
    pub(super) fn words(&self, rows: &Rows) -> Vec<String> {
        let is_read = |candidate: &&Candidate| {
            candidate.first.is_some() && candidate.is_words() && !(candidate.has_no && candidate.has_blank)
        };
        let words = self.columns.iter().filter(is_read);
        words.map(|candidate| rows.columns()[candidate.column].clone()).collect()
    }

    /// Names of columns that look like labels but are not read as labels, and why.
    pub(super) fn doubts(&self, rows: &Rows) -> Vec<(String, String)> {
        /// A column of which this part is 0 or 1 may have been meant as a label.
        const DOUBTFUL: f64 = 0.5;
        let doubt = |candidate: &Candidate| {
            let (name, (location, cell)) = (&rows.columns()[candidate.column], candidate.first.as_ref()?);
            let why = if candidate.holds_lists {
                format!("it holds lists; data.labels_column={name} reads the labels that they name")
            } else if candidate.is_words() && candidate.has_no && candidate.has_blank {
                format!("it holds {}; fill the empty cells (the first is {location}) to make it one", candidate.words())
            } else if candidate.is_words() {
                format!(
                    "it holds {}; data.label_columns takes it as 0 and 1 if it lists it with all other labels",
                    candidate.words()
                )
            } else if candidate.flags as f64 >= DOUBTFUL * self.rows as f64 && candidate.has_one {
                format!("{location} holds `{cell}`, where {} of {} rows hold 0 or 1", candidate.flags, self.rows)
            } else {
                return None;
            };
            Some((name.clone(), why))
        };
        self.columns.iter().filter_map(doubt).collect()
    }
}

/// A warning about a column that looks like a label.
pub(super) fn not_taken((name, why): &(String, String)) -> String {
    format!("column `{name}` is not taken as a label: {why}")
}

impl Candidate {
    fn read(&mut self, rows: &Rows) {
        /// More different words than these are no yes and no.
        const SHOWN: usize = 4;
        let Ok(cell) = rows.text(self.column) else {
            self.holds_lists |= self.first.is_none();
            self.first.get_or_insert_with(|| (rows.location(), "a list or an object".to_owned()));
            self.has_other = true;
            return;
        };
        if let Some(label) = parse_label(&cell) {
            self.flags += 1;
            self.has_one |= label > 0.5;
            self.has_no |= label < 0.5;
            return;
        }
        if self.first.is_none() {
            self.first = Some((rows.location(), clip(&cell)));
            self.holds_lists = ["['", "[\"", "{\"choices\""].iter().any(|start| cell.starts_with(start));
        }
        if self.has_other {
            return;
        }
        match Mark::of(&cell) {
            Some(Mark::Yes) => {}
            Some(Mark::No) => self.has_no = true,
            Some(Mark::Blank) => self.has_blank = true,
            None => self.has_other = true,
        }
        let cell = cell.trim();
        if !self.shown.iter().any(|shown| shown == cell) {
            self.has_other |= self.shown.len() == SHOWN;
            self.shown.push(cell.to_owned());
        }
    }

    /// Returns true if the cells are words for yes and no, or marks and empty cells.
    fn is_words(&self) -> bool {
        let says_something = self.flags > 0 || self.shown.iter().any(|word| !word.is_empty());
        !self.has_other && says_something
    }

    /// Its different cells, for a message.
    fn words(&self) -> String {
        let ones = self.has_one.then(|| "`1`".to_owned());
        let zeros = (self.flags > 0 && self.has_no && !self.has_word_for_no()).then(|| "`0`".to_owned());
        let word = |word: &String| if word.is_empty() { "empty cells".to_owned() } else { format!("`{}`", clip(word)) };
        ones.into_iter().chain(zeros).chain(self.shown.iter().map(word)).collect::<Vec<_>>().join(" and ")
    }

    fn has_word_for_no(&self) -> bool {
        self.shown.iter().any(|word| Mark::of(word) == Some(Mark::No))
    }
}
