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

// Layer 10: what the user runs.
pub mod cli;
pub mod commands;
// Layer 9: answers over HTTP.
pub mod server;
// Layer 8: a trained classifier.
pub mod predictor;
// Layer 7: an experiment's parts, ready to train.
pub mod experiment;
// Layer 6: the training loop, what a model answers without training, and classifiers side by side.
pub mod crew;
pub mod training;
pub mod zeroshot;
// Layer 5: predictions, and the files of a run.
pub mod evaluation;
pub mod run;
// Layer 4: models and their weights.
pub mod model;
// Layer 3: rows, tokens, scores, and files of the Hub.
pub mod baseline;
pub mod data;
pub mod hub;
pub mod metrics;
pub mod thresholds;
// Layer 2: differentiable ops, a container of weights, and the processes that share a job.
pub mod cluster;
pub mod gguf;
pub mod ops;
// Layer 1: arithmetic on tensors, the configuration, the terminal.
pub mod config;
pub mod console;
pub mod kernels;
pub mod partial_output;
// Layer 0: what needs nothing else.
pub mod atomic_file;
pub mod device;
pub mod embedded;
pub mod exit;
pub mod failpoint;
pub mod file_identity;
pub mod interrupt;
pub mod library_panic;
pub mod rng;
pub mod secret;
