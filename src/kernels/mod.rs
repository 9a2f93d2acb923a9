//! Arithmetic on tensors, for the CPU and for NVIDIA GPUs: no gradients, no tape.
//!
//! The only module with unsafe code, and the only one that knows which devices there are.

pub(crate) mod buffer;
pub mod constant;
pub mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod device;
pub mod matrix;

pub use cpu::gemm::Compute;
