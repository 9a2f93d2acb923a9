//! Tiles of a batch's sequences on the GPU: uploaded once for all layers, not by each.

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Result};

use super::shape::tiles_of;

/// What a kernel goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles {
    pub(super) of_keys: bool,
    /// Rows of a tile.
    pub(super) rows: usize,
    /// Tiles that start late in their sequence come first.
    pub(super) latest_first: bool,
}

/// Tiles that kernels have asked for, of the same sequences.
#[derive(Debug, Default)]
pub(in crate::kernels) struct HeldTiles(Mutex<Vec<(Tiles, Arc<CudaSlice<u32>>)>>);

impl HeldTiles {
    /// Pairs: a sequence, and its first query or key of the tile; `offsets` are those of queries or of keys.
    pub(super) fn on(&self, device: &CudaDevice, tiles: Tiles, offsets: &[usize]) -> Result<Arc<CudaSlice<u32>>> {
        // A thread that panicked has added a pair or none.
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = held.iter().find(|(of, _)| *of == tiles) {
            return Ok(Arc::clone(found));
        }
        let mut pairs = tiles_of(offsets, tiles.rows);
        if tiles.latest_first {
            pairs.sort_by_key(|&[_, start]| Reverse(start));
        }
        let new = Arc::new(device.clone_htod(pairs.as_flattened())?);
        held.push((tiles, Arc::clone(&new)));
        Ok(new)
    }
}
