//! Pretrained models: their files, weights, and forward passes.

#![warn(missing_docs)]

pub mod attributions;
pub mod batch;
pub mod builder;
pub mod classifier;
pub mod config;
mod digest_cache;
pub(crate) mod families;
pub mod fingerprint;
mod head;
pub mod lora;
mod modules;
mod post_norm;
mod pre_norm;
pub mod rope;
pub mod weights;
