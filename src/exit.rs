//! Exit statuses, and the errors behind those other than 1.

use std::fmt;
use std::path::PathBuf;

/// Success; also when the reader of standard output went away, as `head` does.
pub const SUCCESS: u8 = 0;
pub const FAILURE: u8 = 1;
/// The command line itself is wrong, as clap's own errors.
pub const USAGE: u8 = 2;

/// The command line asks for something that cannot be.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The reader of standard output has gone and wants no more.
#[derive(Debug)]
pub struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of standard output has gone")
    }
}

impl std::error::Error for ReaderGone {}

/// A run stopped before its end, and can go on.
#[derive(Debug)]
pub struct Resumable {
    /// The run's directory.
    pub run: PathBuf,
    /// The command that resumes it.
    pub command: &'static str,
}

impl Resumable {
    /// The command to type, quoted for a POSIX shell.
    #[must_use]
    pub fn command(&self) -> String {
        format!("llmcls {} --resume {}", self.command, quoted(&self.run.display().to_string()))
    }
}

impl fmt::Display for Resumable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: not finished", self.run.display())
    }
}

/// A word as a shell reads it back.
#[must_use]
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@%,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resume_command_can_be_pasted_whatever_the_directory() {
        for (run, word) in [
            ("outputs/m/d/run_20260102-030405-2", "outputs/m/d/run_20260102-030405-2"),
            ("my runs/a", "'my runs/a'"),
            ("it's", r"'it'\''s'"),
            ("a;b", "'a;b'"),
        ] {
            let resumable = Resumable { run: run.into(), command: "train" };
            assert_eq!(resumable.command(), format!("llmcls train --resume {word}"));
        }
    }
}
