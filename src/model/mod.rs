//! Pretrained models: their files, weights, and forward passes.

pub mod batch;
pub mod builder;
pub mod classifier;
pub mod config;
mod download;
mod families;
pub mod files;
mod head;
pub mod hub;
pub mod lora;
mod post_norm;
mod pre_norm;
pub mod rope;
pub mod weights;
