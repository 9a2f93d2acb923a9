//! Pretrained models: their files, weights, and forward passes.

#![warn(missing_docs)]

pub mod attributions;
pub mod batch;
pub mod builder;
pub mod classifier;
pub mod config;
mod digest_cache;
mod eight_bits;
mod embeddings;
pub mod families;
pub mod fingerprint;
mod form;
mod former_names;
mod frozen;
pub mod frozen_rows;
mod growing_rope;
mod head;
pub mod held;
pub mod key_values;
pub mod language_model;
mod layers;
pub mod lora;
pub mod merged;
mod modules;
mod post_norm;
mod pre_norm;
pub mod quantization;
mod relative;
pub mod rope;
pub mod shared_base;
mod tensor_in_file;
pub mod weights;
