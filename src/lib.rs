//! Fine-tunes a pretrained language model into a text classifier.
//!
//! The flow, one named type per arrow:
//!
//! ```text
//! CSV row -> Example {id, text, labels} -> Encoded {token_ids} -> Batch -> logits (B, L) -> loss
//!         -> gradients -> adapter
//! at evaluation: logits -> Predictions (sigmoid) -> Scores -> records in a RunDir
//! ```
//!
//! Dimension letters, used throughout: N tokens in a batch (unpadded), B examples, D hidden width,
//! H query heads, K key and value heads, d width of a head, I width inside the MLP, L labels,
//! R or r rank of an adapter.
//!
//! Modules stand in layers; one imports from those below it and from its own folder.

// Layer 7: what the user runs.
pub mod cli;
pub mod commands;
// Layer 6: an experiment's parts, ready to train.
pub mod experiment;
// Layer 5: the training loop.
pub mod training;
// Layer 4: predictions, and the files of a run.
pub mod artifacts;
pub mod evaluation;
// Layer 3: models and their weights.
pub mod model;
// Layer 2: rows, tokens, scores, and files of the Hub.
pub mod baseline;
pub mod data;
pub mod hub;
pub mod metrics;
pub mod thresholds;
// Layer 1: kernels, differentiable ops on them, the configuration, the terminal.
pub mod config;
pub mod console;
pub mod kernels;
pub mod ops;
// Layer 0: what needs nothing else.
pub mod atomic_file;
pub mod device;
pub mod failpoint;
pub mod interrupt;
pub mod rng;
