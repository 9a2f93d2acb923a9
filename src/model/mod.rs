//! Pretrained models: their files, weights, and forward passes.

pub mod batch;
pub mod classifier;
pub mod config;
mod decoder_config;
mod digest_cache;
mod encoder_config;
pub mod fingerprint;
mod head;
pub mod lora;
pub mod parts;
mod post_norm;
mod pre_norm;
pub mod rope_config;
pub mod weights;
