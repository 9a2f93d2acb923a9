//! The GPU: kernels whose tensors live there, in f32 or with bf16 activations.
//!
//! Each function does what its namesake in `cpu` does. Kernels are in the `.cu` files; matrix products are
//! cuBLAS's. All work goes to one stream, in order, so memory may be freed as soon as the last kernel that
//! uses it is queued.

pub(super) mod activation;
pub(super) mod adapted;
pub(super) mod attention;
pub(super) mod driver;
pub(super) mod dropout;
pub(super) mod elementwise;
pub(super) mod gemm;
mod launch;
pub(super) mod low_rank;
pub(super) mod matrix;
pub(super) mod memory;
pub(super) mod norm;
pub(super) mod optimizer;
mod relative;
pub(super) mod rope;
pub(super) mod rows;
mod shape;
mod staging;
#[cfg(test)]
mod tests;
pub(super) mod tiles;
