//! Ctrl-C and SIGTERM: the first asks training to stop at the next step, the second stops at once.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

static REQUESTED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// The error of a run that was asked to stop and did.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted {
    signal: u8,
}

impl Interrupted {
    /// What a shell expects: 128 and the signal's number.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        128 + self.signal
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if i32::from(self.signal) == SIGINT { "interrupted" } else { "terminated" })
    }
}

impl std::error::Error for Interrupted {}

/// Starts to listen. Without this, a signal ends the program as usual.
///
/// # Errors
/// If the system refuses the handlers.
pub fn listen() -> io::Result<()> {
    let requested = REQUESTED.get_or_init(Arc::default);
    let is_second = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Handlers run in the order of registration: the first signal finds the flag unset.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&is_second))?;
        flag::register(signal, Arc::clone(&is_second))?;
        flag::register_usize(signal, Arc::clone(requested), signal as usize)?;
    }
    Ok(())
}

/// Whether a signal has come.
///
/// # Errors
/// [`Interrupted`], if one has.
pub fn check() -> Result<(), Interrupted> {
    match REQUESTED.get().map_or(0, |requested| requested.load(Ordering::Relaxed)) {
        0 => Ok(()),
        signal => Err(Interrupted { signal: signal as u8 }),
    }
}
