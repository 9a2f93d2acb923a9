//! Whole behaviour, in one binary.

#![allow(clippy::unwrap_used, reason = "a failed test should panic where it failed")]

/// The linear baseline against scikit-learn.
mod baseline;
/// The built program, as a user runs it.
mod cli;
/// The same numbers on every CPU, in every batch.
mod compute;
/// Disks, tokens and files that are not as they should be.
mod failures;
/// The work of a training step.
mod flops;
/// Downloads, from a server on this machine that speaks the Hub's language.
mod hub;
/// Bad input in bulk.
mod inputs;
/// Modules import downwards only.
mod layers;
/// Scores of scikit-learn and torchmetrics.
mod metrics;
/// Numbers of bitsandbytes.
mod nf4;
/// Numbers of transformers, peft and torch.
mod parity;
/// Training files of rows that list labels.
mod prepare;
/// Readers of files from outside, on bytes.
mod readers;
/// The documented configuration is the declared one.
mod reference;
/// Reports, and errors by label.
mod report;
/// Runs that die and go on.
mod resume;
