//! Whole behaviour, in one binary.

#![allow(clippy::unwrap_used, reason = "a failed test should panic where it failed")]

/// The built program, as a user runs it.
mod cli;
/// Bad input in bulk.
mod inputs;
/// Modules import downwards only.
mod layers;
/// Numbers of bitsandbytes.
mod nf4;
/// Numbers of transformers, peft and torch.
mod parity;
/// Readers of files from outside, on bytes.
mod readers;
/// Runs that die and go on.
mod resume;
