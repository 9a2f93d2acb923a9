//! Pretrained models: their files, weights, and forward passes.

pub mod batch;
pub mod classifier;
pub mod config;
pub mod decoder;
pub mod hub;
pub mod lora;
pub mod weights;
