//! What computes: the code for each kind of processor.

pub(crate) mod cpu;

pub use cpu::product::Compute;
