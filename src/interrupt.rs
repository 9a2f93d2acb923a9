//! Ctrl-C and SIGTERM. Before training has begun, and in commands that keep nothing, a signal ends the program
//! at once. In training the first asks it to stop at the next step, the second stops at once.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
#[cfg(unix)]
use signal_hook::iterator::Signals;

static REQUESTED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// True if the current step is finished before the program stops.
static FINISHES_STEP: AtomicBool = AtomicBool::new(false);

/// Message after the first signal, if work continues.
static FINISHING: OnceLock<&'static str> = OnceLock::new();

/// Advice for the user after an interruption.
static ADVICE: OnceLock<String> = OnceLock::new();

/// Says `advice` after a signal has ended the program. The first advice stays.
pub fn advise(advice: String) {
    let _ = ADVICE.set(advice);
}

/// The error of a run that was asked to stop and did.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted {
    signal: u8,
}

impl Interrupted {
    /// A stop by the signal of this number.
    #[must_use]
    pub fn by(signal: u8) -> Self {
        Self { signal }
    }

    /// The signal's number.
    #[must_use]
    pub fn signal(self) -> u8 {
        self.signal
    }

    /// The exit status that shells expect: 128 plus the signal's number.
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

/// Actions of the listener before it ends the program.
#[derive(Clone, Copy)]
pub struct Listener {
    /// Writes a line for the user.
    pub say: fn(&str),
    /// Removes half-written files.
    pub clean: fn(),
}

/// Starts to listen. Without this, a signal ends the program as usual.
pub fn listen(listener: Listener) -> io::Result<()> {
    let requested = REQUESTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        // In the handler itself, so that a step that ends now already sees it.
        flag::register_usize(signal, Arc::clone(requested), signal as usize)?;
    }
    let mut is_first = true;
    on_each_signal(move |signal| {
        if is_first && FINISHES_STEP.load(Ordering::SeqCst) {
            is_first = false;
            let what = FINISHING.get().unwrap_or(&"stopping after this step");
            (listener.say)(&format!("{what}; Ctrl-C again stops now"));
            return;
        }
        (listener.clean)();
        (listener.say)(&format!("stopped: {}", Interrupted { signal: signal as u8 }));
        if let Some(advice) = ADVICE.get() {
            (listener.say)(advice);
        }
        std::process::exit(128 + signal);
    })
}

/// Calls `act` on a thread of its own for every signal.
#[cfg(unix)]
fn on_each_signal(mut act: impl FnMut(i32) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || signals.forever().for_each(&mut act)).map(drop)
}

/// Elsewhere handlers can set a flag, and nothing waits for them.
#[cfg(not(unix))]
fn on_each_signal(mut act: impl FnMut(i32) + Send + 'static) -> io::Result<()> {
    const POLL: std::time::Duration = std::time::Duration::from_millis(50);
    let pending = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM] {
        flag::register_usize(signal, Arc::clone(&pending), signal as usize)?;
    }
    let wait = move || loop {
        match pending.swap(0, Ordering::SeqCst) {
            0 => thread::sleep(POLL),
            signal => act(signal as i32),
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}

/// From here on, the first signal lets the current step finish; [`check`] tells of it.
///
/// # Errors
/// [`Interrupted`], if one has come already.
pub fn finish_steps() -> Result<(), Interrupted> {
    FINISHES_STEP.store(true, Ordering::SeqCst);
    check()
}

/// From here on, the first signal lets requests in work finish; [`check`] tells of it.
///
/// # Errors
/// [`Interrupted`], if one has come already.
pub fn finish_requests() -> Result<(), Interrupted> {
    let _ = FINISHING.set("stopping after the requests in work");
    finish_steps()
}

/// Returns an error if a signal has come.
pub fn check() -> Result<(), Interrupted> {
    match REQUESTED.get().map_or(0, |requested| requested.load(Ordering::Relaxed)) {
        0 => Ok(()),
        signal => Err(Interrupted { signal: signal as u8 }),
    }
}
