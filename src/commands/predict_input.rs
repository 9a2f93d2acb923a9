//! The rows that `predict` reads: a file, a stream, `--text`, or what is typed at a prompt.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cli::PredictArgs;
use crate::console::Console;
use crate::data::columns::Columns;
use crate::data::table::{Example, Table, typed_text};
use crate::exit::Usage;
use crate::interrupt::Interrupted;

/// Where the rows come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    File(PathBuf),
    Texts,
    Prompt,
}

impl Origin {
    pub(super) fn of(args: &PredictArgs) -> Result<Self> {
        match args.input.as_ref().or(args.input_csv.as_ref()) {
            Some(path) => Ok(Self::File(path.clone())),
            None if !args.text.is_empty() => Ok(Self::Texts),
            None if io::stdin().is_terminal() => Ok(Self::Prompt),
            None => Err(Usage(
                "predict needs rows: name a file (`-` reads standard input) or give --text \"…\"; on a terminal it asks \
                 for texts"
                    .to_owned(),
            )
            .into()),
        }
    }

    /// The file or stream that the user named.
    pub(super) fn given(&self) -> Option<PathBuf> {
        match self {
            Self::File(path) => Some(path.clone()),
            Self::Texts | Self::Prompt => None,
        }
    }

    /// The path for messages.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Texts => Path::new("--text"),
            Self::Prompt => Path::new("-"),
        }
    }

    /// A file that can be read again.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) if path.metadata().is_ok_and(|data| data.is_file()) => Some(path),
            _ => None,
        }
    }

    /// Returns true unless the input is a stream. The file may still be missing.
    pub(super) fn can_be_read_again(&self) -> bool {
        matches!(self, Self::File(path) if path.as_os_str() != "-" && (path.is_file() || !path.exists()))
    }

    /// Where predictions go without `-o`.
    pub(super) fn default_output(&self, args: &PredictArgs) -> &'static Path {
        match self {
            Self::File(_) if args.input.as_deref() != Some(Path::new("-")) => Path::new("preds.jsonl"),
            _ => Path::new("-"),
        }
    }

    pub(super) fn open(&self, args: &PredictArgs, columns: &Columns) -> Result<Input> {
        let fields = columns.text_fields.is_some();
        let source = match self {
            Self::File(path) => Source::Table(Box::new(Table::open(path, columns)?)),
            Self::Texts => Source::Texts { texts: args.text.clone().into_iter(), fields, count: 0 },
            Self::Prompt => Source::Prompt { fields, count: 0 },
        };
        Ok(Input { source, failure: None })
    }
}

/// Rows to predict.
pub(super) struct Input {
    source: Source,
    /// Of a row behind those that were taken: they are predicted first.
    failure: Option<anyhow::Error>,
}

enum Source {
    Table(Box<Table>),
    Texts { texts: std::vec::IntoIter<String>, fields: bool, count: usize },
    Prompt { fields: bool, count: usize },
}

impl Input {
    /// The rows that have arrived: at most `most`, at least one; none at the end.
    pub(super) fn window(&mut self, most: usize) -> Result<Vec<Example>> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let mut window = Vec::new();
        while window.len() < most && (window.is_empty() || !self.source.is_paused()) {
            match self.source.read() {
                Ok(Some(example)) => window.push(example),
                Ok(None) => break,
                Err(error) if window.is_empty() || error.is::<Interrupted>() => return Err(error),
                Err(error) => {
                    self.failure = Some(error);
                    break;
                }
            }
        }
        Ok(window)
    }

    pub(super) fn notes(&self, console: Console) {
        match &self.source {
            Source::Table(table) => table.notes().iter().for_each(|note| console.say(note)),
            Source::Texts { .. } => {}
            Source::Prompt { .. } => console.say("type a text and press Enter; Ctrl-D ends"),
        }
    }

    pub(super) fn warn(&self, console: Console) {
        if let Source::Table(table) = &self.source {
            table.absences().iter().for_each(|warning| console.warn(warning));
        }
    }
}

impl Source {
    fn is_paused(&self) -> bool {
        match self {
            Self::Table(table) => table.is_paused(),
            Self::Texts { .. } => false,
            Self::Prompt { .. } => true,
        }
    }

    fn read(&mut self) -> Result<Option<Example>> {
        match self {
            Self::Table(table) => table.next().transpose(),
            Self::Texts { texts, fields, count } => Ok(texts.next().map(|text| typed(&text, *fields, count))),
            Self::Prompt { fields, count } => Ok(ask()?.map(|text| typed(&text, *fields, count))),
        }
    }
}

/// Rows held at a time: enough to batch by length and for every thread, few enough that memory stays flat, and that what is
/// not yet written when somebody stops is the work of some seconds.
pub(super) struct WindowSize {
    pub(super) rows: usize,
    started: Instant,
}

impl WindowSize {
    const FIRST: usize = 128;
    const LEAST: usize = 64;

    pub(super) fn new() -> Self {
        Self { rows: Self::FIRST, started: Instant::now() }
    }

    /// After a window of so many rows.
    pub(super) fn adapt(&mut self, rows: usize) {
        const SECONDS: f64 = 10.0;
        let most = 1024.max(Self::LEAST * rayon::current_num_threads());
        let seconds = self.started.elapsed().as_secs_f64().max(1e-3);
        self.rows = (SECONDS / seconds * rows as f64).clamp(Self::LEAST as f64, most as f64) as usize;
        self.started = Instant::now();
    }
}

/// The number of rows of a file. A row that is malformed is found here, before any work.
pub(super) fn count(path: &Path, columns: &Columns) -> Result<usize> {
    Table::open(path, columns)?.try_fold(0, |count, row| row.map(|_| count + 1))
}

/// A typed text as a row.
fn typed(text: &str, fields: bool, count: &mut usize) -> Example {
    *count += 1;
    Example { id: (*count - 1).to_string(), text: typed_text(text, fields), labels: Vec::new() }
}

/// The next line that is typed and not blank.
fn ask() -> Result<Option<String>> {
    let mut line = String::new();
    loop {
        line.clear();
        // A prompt that cannot be shown is no reason to stop.
        let _ = write!(io::stderr(), "> ").and_then(|()| io::stderr().flush());
        if io::stdin().lock().read_line(&mut line).context("-: cannot read")? == 0 {
            let _ = writeln!(io::stderr());
            return Ok(None);
        }
        if !line.trim().is_empty() {
            return Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()));
        }
    }
}
