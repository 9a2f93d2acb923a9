//! Stops the program at a chosen site, so that tests can see what a crash leaves behind.
//!
//! `LLMCLS_FAILPOINT=<site>:<n>:<action>` acts on the n-th time that the site is reached: `kill`,
//! `-INT` and `-TERM` send the process that signal, `full` gives the error of a full disk. Without the
//! variable, as in any use but tests, nothing happens.

use std::io;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A site in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// After an optimizer step.
    Step,
    /// A file is half written.
    Write,
    /// A file or directory is complete, but has not its name yet.
    Rename,
}

struct Failpoint {
    site: Site,
    count: usize,
    action: Action,
}

enum Action {
    Signal(&'static str),
    DiskFull,
}

/// Does what the variable asks for, if this is the chosen time at the chosen site.
///
/// # Errors
/// The error of a full disk, if that was asked for.
pub fn reached(site: Site) -> io::Result<()> {
    static CHOSEN: OnceLock<Option<Failpoint>> = OnceLock::new();
    static REACHED: AtomicUsize = AtomicUsize::new(0);
    let chosen = CHOSEN.get_or_init(|| std::env::var("LLMCLS_FAILPOINT").ok().and_then(|text| parse(&text)));
    let Some(failpoint) = chosen.as_ref().filter(|failpoint| failpoint.site == site) else { return Ok(()) };
    if REACHED.fetch_add(1, Ordering::Relaxed) + 1 != failpoint.count {
        return Ok(());
    }
    match failpoint.action {
        Action::Signal(signal) => {
            // From outside, as a user or the system sends it: after SIGKILL nothing here runs.
            Command::new("kill").args([signal, &std::process::id().to_string()]).status().map(drop)
        }
        Action::DiskFull => Err(io::ErrorKind::StorageFull.into()),
    }
}

fn parse(text: &str) -> Option<Failpoint> {
    let mut parts = text.split(':');
    let site = match parts.next()? {
        "step" => Site::Step,
        "write" => Site::Write,
        "rename" => Site::Rename,
        _ => return None,
    };
    let count = parts.next()?.parse().ok()?;
    let action = match parts.next()? {
        "kill" => Action::Signal("-KILL"),
        "-INT" => Action::Signal("-INT"),
        "-TERM" => Action::Signal("-TERM"),
        "full" => Action::DiskFull,
        _ => return None,
    };
    Some(Failpoint { site, count, action })
}
