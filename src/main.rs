//! Parses, dispatches, prints the error chain, and sets the exit code.

use std::process::ExitCode;

use clap::Parser;
use llmcls::console::{Grade, complain, complain_of, print};
use llmcls::exit::{self, ReaderGone, Resumable, Usage};
use llmcls::interrupt::{self, Interrupted, Listener};
use llmcls::kernels::cpu::memory;
use llmcls::{atomic_file, cli::Cli, cluster, commands, secret};

fn main() -> ExitCode {
    hide_backtraces();
    memory::keep_large_blocks();
    secret::remember_surroundings();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli.settled(),
        Err(error) => return explain(&error),
    };
    let listener = Listener { say: |line| complain(line), clean: atomic_file::remove_temporaries };
    let result = interrupt::listen(listener).map_err(anyhow::Error::from).and_then(|()| commands::run(&cli));
    let status = result.map_or_else(|error| fail(&error), |()| exit::SUCCESS);
    cluster::end(status);
    ExitCode::from(status)
}

/// Leaves backtraces to panics: errors are for users, and libraries print theirs with a backtrace under RUST_BACKTRACE.
fn hide_backtraces() {
    const OF_ERRORS: &str = "RUST_LIB_BACKTRACE";
    if std::env::var_os(OF_ERRORS).is_none() {
        // SAFETY: no other thread runs yet.
        #[expect(unsafe_code, reason = "the standard library looks at the variable alone")]
        unsafe {
            std::env::set_var(OF_ERRORS, "0");
        }
    }
}

/// Help and version go to standard output, wrong usage to standard error.
fn explain(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        // Plain text where a token has to be taken out of it.
        let text = error.render().to_string();
        if secret::masked(&text) == text {
            let _ = error.print();
        } else {
            complain(text.trim_end());
        }
        return ExitCode::from(exit::USAGE);
    }
    match error.print() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(print("").map_or(exit::FAILURE, |()| exit::SUCCESS)),
    }
}

/// Says what went wrong, and how to go on; returns the exit status.
fn fail(error: &anyhow::Error) -> u8 {
    if error.is::<ReaderGone>() {
        // `head` has read enough: that is no failure. The other ranks wait for the next rows.
        return cluster::end_all(exit::SUCCESS);
    }
    let interrupted = error.downcast_ref::<Interrupted>();
    if interrupted.is_none() {
        cluster::fail(&format!("{error:#}"));
    } else if cluster::member().is_none_or(|member| member.rank == 0) {
        // All ranks were stopped together: rank 0 says so.
        complain_of(Grade::Stopped, format!("{error:#}"));
    } else {
        return interrupted.map_or(exit::FAILURE, |interrupted| interrupted.exit_code());
    }
    if let Some(resumable) = error.downcast_ref::<Resumable>() {
        complain(format!("to resume it:\n  {}", resumable.command()));
    }
    match interrupted {
        Some(interrupted) => interrupted.exit_code(),
        None if error.is::<Usage>() => exit::USAGE,
        None => exit::FAILURE,
    }
}
