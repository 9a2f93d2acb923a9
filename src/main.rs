//! Parses, dispatches, prints the error chain, and sets the exit code.

use std::process::ExitCode;

use clap::Parser;
use llmcls::{cli::Cli, commands, interrupt::Interrupted, kernels::cpu::memory};

fn main() -> ExitCode {
    memory::keep_large_blocks();
    let cli = Cli::parse();
    match commands::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the one place that reports a failure")]
fn fail(error: &anyhow::Error) -> ExitCode {
    // A reader such as `head` that went away is not a failure worth words.
    if error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe))
    {
        return ExitCode::FAILURE;
    }
    if let Some(interrupted) = error.chain().find_map(|cause| cause.downcast_ref::<Interrupted>()) {
        eprintln!("stopped: {error:#}");
        return ExitCode::from(interrupted.exit_code());
    }
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
