//! Counts the work of matrix products, so that a test can hold a training step to what the
//! algorithm needs.

use std::sync::atomic::{AtomicU64, Ordering};

static MULTIPLY_ADDS: AtomicU64 = AtomicU64::new(0);

/// Adds a product of `m × k` and `k × n`.
pub(crate) fn count(m: usize, k: usize, n: usize) {
    MULTIPLY_ADDS.fetch_add((m * k * n) as u64, Ordering::Relaxed);
}

/// Multiply-adds done by matrix products in this process so far.
#[must_use]
pub fn multiply_adds() -> u64 {
    MULTIPLY_ADDS.load(Ordering::Relaxed)
}
