//! Messages and progress on standard error: bars on a terminal, plain lines elsewhere.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write, stderr, stdout};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ::console::{Term, measure_text_width};
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::exit::ReaderGone;
use crate::secret::masked;

/// Writes messages and progress for the user.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    is_quiet: bool,
    is_silent: bool,
}

/// The progress of one piece of work.
pub struct ProgressMeter {
    display: Display,
    title: String,
    message: String,
    total: u64,
    done: u64,
    done_before: u64,
    started: Instant,
    last_line: Instant,
}

enum Display {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

/// All bars of the terminal: messages in between must not tear them.
fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// Severity of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// Work continues.
    Warning,
    /// The command failed.
    Error,
    /// The user stopped the command.
    Stopped,
}

impl Grade {
    fn word(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Stopped => "stopped",
        }
    }

    fn style(self) -> Style {
        let colour = match self {
            Self::Warning | Self::Stopped => AnsiColor::Yellow,
            Self::Error => AnsiColor::Red,
        };
        colour.on_default().bold()
    }
}

/// [`complain`], after a word that says how bad it is, coloured where standard error is a terminal and neither
/// NO_COLOR nor CLICOLOR=0 is set.
pub fn complain_of(grade: Grade, message: impl AsRef<str>) {
    let style = match AutoStream::choice(&stderr()) {
        ColorChoice::Never => Style::new(),
        _ => grade.style(),
    };
    let word = grade.word();
    complain(format!("{style}{word}:{style:#} {}", wrapped(message.as_ref(), word.len() + 2)));
}

/// Text for standard output, bold where it is a terminal that takes it.
#[must_use]
pub fn bold(text: &str) -> String {
    let style = match AutoStream::choice(&stdout()) {
        ColorChoice::Never => Style::new(),
        _ => Style::new().bold(),
    };
    format!("{style}{text}{style:#}")
}

/// Writes a line to standard error, tokens masked. A log that cannot be written (a full disk, a reader that
/// has gone) ends nothing: neither this nor the bars may fail or panic.
pub fn complain(message: impl AsRef<str>) {
    // Not `suspend`, which panics where the terminal is gone; the next step draws the bars again.
    let _ = bars().clear();
    let _ = writeln!(stderr().lock(), "{}", masked(message.as_ref()));
}

/// Breaks lines between words where standard error is a terminal and they do not fit. Lines that start with a space, such
/// as commands to paste, stay whole. `used` columns of the first line are taken.
fn wrapped(message: &str, used: usize) -> Cow<'_, str> {
    match Term::stderr().size_checked() {
        Some((_, columns)) => broken(message, used, usize::from(columns)).into(),
        None => message.into(),
    }
}

fn broken(message: &str, used: usize, columns: usize) -> String {
    let mut out = String::with_capacity(message.len() + 16);
    let mut at = used;
    for (index, line) in message.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
            at = 0;
        }
        if line.starts_with(' ') {
            out.push_str(line);
            continue;
        }
        for (index, word) in line.split(' ').enumerate() {
            let width = measure_text_width(word);
            if index > 0 && at + 1 + width > columns {
                out.push_str("\n  ");
                at = 2;
            } else if index > 0 {
                out.push(' ');
                at += 1;
            }
            out.push_str(word);
            at += width;
        }
    }
    out
}

/// Writes a command's result to standard output.
///
/// # Errors
/// [`ReaderGone`] if the reader has closed it, or the error of the system.
pub fn print(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(output_error)
}

/// Prints a result to standard output as indented JSON.
pub fn print_json(value: &serde_json::Value) -> Result<()> {
    print(&format!("{value:#}\n"))
}

/// Turns an error of writing to standard output into one with a meaning.
#[must_use]
pub fn output_error(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return ReaderGone.into();
    }
    anyhow::Error::new(error).context("cannot write to standard output")
}

/// Between two plain lines of progress.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

impl Console {
    /// A console that says only what went wrong if `is_quiet`.
    #[must_use]
    pub fn new(is_quiet: bool) -> Self {
        Self { is_quiet, is_silent: false }
    }

    /// A console that says nothing: another process says it.
    #[must_use]
    pub fn silent() -> Self {
        Self { is_quiet: true, is_silent: true }
    }

    /// Prints a message unless `--quiet` is set.
    pub fn say(self, message: impl AsRef<str>) {
        if !self.is_quiet {
            complain(wrapped(message.as_ref(), 0));
        }
    }

    /// Prints a warning, even with `--quiet`.
    pub fn warn(self, message: impl AsRef<str>) {
        if !self.is_silent {
            complain_of(Grade::Warning, message);
        }
    }

    /// Shows the progress of `total` units of work, each a `unit`.
    #[must_use]
    pub fn progress(self, title: impl Into<String>, total: usize, unit: &str) -> ProgressMeter {
        let title = title.into();
        let display = if self.is_quiet {
            Display::Nothing
        } else if stderr().is_terminal() {
            let style =
                ProgressStyle::with_template(&format!("{{prefix}} [{{wide_bar}}] {{pos}}/{{len}} {unit} {{msg}}"))
                    .expect("the template is valid")
                    .progress_chars("=> ");
            let bar = bars().add(ProgressBar::new(total as u64).with_style(style));
            bar.set_prefix(title.clone());
            bar.set_message("eta –");
            Display::Bar(bar)
        } else {
            Display::Lines
        };
        let now = Instant::now();
        ProgressMeter {
            display,
            title,
            message: String::new(),
            total: total as u64,
            done: 0,
            done_before: 0,
            started: now,
            last_line: now,
        }
    }
}

impl ProgressMeter {
    /// `count` units were done before.
    pub fn start_at(&mut self, count: usize) {
        self.done = count as u64;
        self.done_before = count as u64;
        if let Display::Bar(bar) = &self.display {
            bar.set_position(self.done);
        }
        self.started = Instant::now();
    }

    /// `count` more units are done.
    pub fn advance(&mut self, count: usize, message: impl FnOnce() -> String) {
        self.done += count as u64;
        if !matches!(self.display, Display::Nothing) {
            self.message = message();
            self.show(0.0, "");
        }
    }

    /// Shows that `done` of `total` parts of the next unit are done, so that long units do not look stuck.
    pub fn part(&mut self, done: usize, total: usize, name: &str) {
        if total > 1 && !matches!(self.display, Display::Nothing) {
            self.show(done as f64 / total as f64, &format!(" {name} {done}/{total}"));
        }
    }

    fn show(&mut self, fraction: f64, part: &str) {
        let done = (self.done - self.done_before) as f64 + fraction;
        let left = (self.total - self.done.min(self.total)) as f64 - fraction;
        let eta = match done > 0.0 {
            true => clock(self.started.elapsed().as_secs_f64() * left / done),
            false => "–".to_owned(),
        };
        match &self.display {
            Display::Nothing => {}
            Display::Bar(bar) => {
                bar.set_position(self.done);
                bar.set_message(format!("{}{part} eta {eta}", self.message).trim_start().to_owned());
            }
            Display::Lines if self.last_line.elapsed() >= LINE_INTERVAL && self.done < self.total => {
                self.last_line = Instant::now();
                complain(format!("{} {}/{} {}{part} eta {eta}", self.title, self.done, self.total, self.message));
            }
            Display::Lines => {}
        }
    }

    /// Units a second, with `count` that are done now.
    #[must_use]
    pub fn rate(&self, count: usize) -> f64 {
        (self.done - self.done_before + count as u64) as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    pub fn finish(self) {
        if let Display::Bar(bar) = self.display {
            bar.finish_and_clear();
        }
    }
}

/// Text on one line, cut to this width: a cell of a table.
#[must_use]
pub fn cell(text: &str, width: usize) -> String {
    let text = one_line(text);
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

/// Text without line breaks and other control characters.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A duration in the units that people use.
#[must_use]
pub fn duration(seconds: f64) -> String {
    match seconds {
        _ if seconds < 120.0 => format!("{seconds:.0} s"),
        _ if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

/// Time that is left, as short as a bar needs it.
fn clock(seconds: f64) -> String {
    match seconds.ceil() as u64 {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Bytes for people: `1.5 GiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (0..units.len() - 1).find(|&power| count < 1024u64.pow(power as u32 + 1)).unwrap_or(units.len() - 1);
    if power == 0 {
        return format!("{count} B");
    }
    format!("{:.1} {}", count as f64 / 1024f64.powi(power as i32), units[power])
}

/// A number with its thousands apart.
#[must_use]
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut parts: Vec<&str> = if first > 0 { vec![&digits[..first]] } else { Vec::new() };
    parts.extend((first..digits.len()).step_by(3).map(|at| &digits[at..at + 3]));
    parts.join(",")
}

/// `1 row`, `1,200 rows`.
#[must_use]
pub fn counted(number: usize, thing: &str) -> String {
    format!("{} {thing}{}", grouped(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_one_line_that_is_cut_to_its_width() {
        assert_eq!(cell("a long\nname", 6), "a lon…");
        assert_eq!(cell("a\tname", 6), "a name");
    }

    #[test]
    fn lines_are_broken_between_words_and_commands_stay_whole() {
        assert_eq!(broken("one two three", 0, 80), "one two three");
        assert_eq!(broken("one two three four", 4, 12), "one two\n  three four");
        assert_eq!(broken("a-word-that-is-too-long b", 0, 10), "a-word-that-is-too-long\n  b");
        let command = "to resume it:\n  llmcls train --resume a/long/path";
        assert_eq!(broken(command, 0, 20), command);
    }
}
