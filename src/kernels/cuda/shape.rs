//! What kernels of attention are told beside their tensors.

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;

use super::launch::StreamWords;
use super::memory::Address;

/// What all tiles share: `Shape` in attention.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) heads: u32,
    pub(super) key_heads: u32,
    pub(super) head_size: u32,
    pub(super) tokens: u32,
    pub(super) tile: u32,
    pub(super) is_causal: u32,
    pub(super) window: u32,
    pub(super) scale: f32,
    pub(super) cap: f32,
    pub(super) stream: StreamWords,
    pub(super) threshold: u32,
    pub(super) kept_scale: f32,
    pub(super) longest: u32,
    pub(super) rows: Address<u32>,
    pub(super) table: u64,
    pub(super) of_queries: Address<f32>,
    pub(super) of_keys: Address<f32>,
    pub(super) bias: Address<f32>,
    pub(super) slopes: Address<f32>,
}

// SAFETY: laid out as in C.
#[expect(unsafe_code, reason = "a parameter of a kernel")]
unsafe impl DeviceRepr for Shape {}

/// Pairs: a sequence, and its first query or key of a tile of so many.
pub(super) fn tiles_of(offsets: &[usize], tile: usize) -> Vec<[u32; 2]> {
    let sequences = offsets.windows(2).enumerate();
    sequences
        .flat_map(|(b, pair)| (0..pair[1] - pair[0]).step_by(tile).map(move |start| [b as u32, start as u32]))
        .collect()
}
