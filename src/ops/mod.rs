//! The tape, and the ops on it: each with a forward and a backward of its own.
//!
//! candle's autograd is not used: its fused ops have no backward, and its matmul always computes
//! the gradient of both operands, where ours are frozen on one side.

#![warn(missing_docs)]

pub mod activation;
pub mod adamw;
pub mod adapter_routing;
pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod layer_norm;
pub mod linear;
pub mod lora_linear;
pub mod loss;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod tape;
pub mod to_host;

#[cfg(test)]
pub(crate) mod finite_differences;
