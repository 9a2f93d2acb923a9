//! Counts the work of matrix products, so that a test can hold a training step to what the
//! algorithm needs, and measures how fast such products are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::kernels::Compute;
use crate::kernels::cpu::memory::Buffer;
use crate::kernels::matrix::{FrozenMatrix, Storage};

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

/// Floating-point operations a second of a large product on all threads: the best of a few.
#[must_use]
pub fn measure_rate(compute: Compute) -> f64 {
    const SIZE: usize = 1024;
    let storage = match compute {
        Compute::Float32 => Storage::F32(Buffer::Owned(vec![0.5; SIZE * SIZE])),
        Compute::Bfloat16 => Storage::Bf16(Buffer::Owned(vec![half::bf16::from_f32(0.5); SIZE * SIZE])),
    };
    let matrix = FrozenMatrix::new(storage, SIZE, SIZE).computed_in(compute);
    let (x, mut y) = (vec![0.25; SIZE * SIZE], vec![0.0; SIZE * SIZE]);
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let begin = Instant::now();
        matrix.product(&x, &mut y, false);
        best = best.min(begin.elapsed().as_secs_f64());
    }
    2.0 * (SIZE as f64).powi(3) / best
}
