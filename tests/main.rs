//! Whole behaviour, in one binary.

#![allow(clippy::unwrap_used, reason = "a failed test should panic where it failed")]

/// Adapters of peft in their less usual forms, and heads of the base.
mod adapters;
/// Which tokens weighed.
mod attributions;
/// Bases that move, change, or are not what a run was trained on.
mod base;
/// The linear baseline against scikit-learn.
mod baseline;
/// The built program, as a user runs it.
mod cli;
/// The same numbers on every CPU, in every batch.
mod compute;
/// Complete models of a base and its adapter.
mod export;
/// Disks, tokens and files that are not as they should be.
mod failures;
/// Configurations of every family.
mod families;
/// The work of a training step.
mod flops;
/// Every training row predicted by a model that has not seen it.
mod folds;
/// Frozen layers computed once.
mod frozen;
/// Bases in GGUF files.
mod gguf;
/// Downloads, from a server on this machine that speaks the Hub's language.
mod hub;
/// From one file of labelled texts to predictions.
mod init;
/// Training that starts from an adapter.
mod init_adapter;
/// Bad input in bulk.
mod inputs;
/// Predicting in int8.
mod int8;
/// The declarations of CUDA kernels.
mod kernels;
/// Labels in every form that files have.
mod labels;
/// Language models: logits, greedy tokens, keys and values that are kept.
mod language;
/// Modules import downwards only.
mod layers;
/// Texts that are longer than the model reads at once.
mod long_texts;
/// Scores of scikit-learn and torchmetrics.
mod metrics;
/// Numbers of bitsandbytes.
mod nf4;
/// Outputs, logs, signals and sizes at their limits.
mod outputs;
/// The image for containers, without a daemon.
mod packaging;
/// Numbers of transformers, peft and torch.
mod parity;
/// Other tokens pooled, and attention to both sides.
mod pooling;
/// `llmcls predict` as people and programs use it.
mod predict;
/// Training files of rows that list labels.
mod prepare;
/// Uploads, to a server on this machine that speaks the Hub's language.
mod push;
/// Readers of files from outside, on bytes.
mod readers;
/// Losses, rates and averages of training, against torch.
mod recipes;
/// The documented configuration is the declared one.
mod reference;
/// Reports, and errors by label.
mod report;
/// Runs that die and go on.
mod resume;
/// Rows as other programs write them.
mod rows;
/// Classifiers over HTTP.
mod serve;
/// One run for each combination, and the best.
mod sweep;
/// Token ids of transformers, for every class and key.
mod tokenizers;
/// Encoders whose every weight is trained.
mod whole_model;
/// A pretrained model that is asked.
mod zeroshot;
