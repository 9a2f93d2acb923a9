//! The CPU's kernels, as functions on slices.

pub(crate) mod product;
