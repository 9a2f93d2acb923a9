//! Whole behaviour, in one binary.

#![allow(clippy::unwrap_used, reason = "a failed test should panic where it failed")]

/// The built program, as a user runs it.
mod cli;
/// Modules import downwards only.
mod layers;
/// Numbers of bitsandbytes.
mod nf4;
/// Numbers of transformers, peft and torch.
mod parity;
/// Runs that die and go on.
mod resume;
