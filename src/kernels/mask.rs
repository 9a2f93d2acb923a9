//! Dropout masks: functions of a counter (see [`crate::rng`]), so that a layer that is computed again draws the same
//! mask.

use std::cell::OnceCell;

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::CudaSlice;

use crate::rng::{Purpose, Stream};

/// Key of a dropout mask, in addition to the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// The training seed.
    pub seed: u32,
    /// Micro-batches since the start of training.
    pub micro_batch: u32,
}

/// A site in a frozen base where the model itself drops elements while it trains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability with which an element is left out.
    pub p: f32,
    /// Selects the random stream of the mask: the number of the site in the model.
    pub site: u32,
}

impl Dropout {
    /// Decides which probabilities or elements are kept, or `None` where all are.
    pub(crate) fn choice(&self, key: Option<DropoutKey>) -> Option<Choice> {
        let key = key.filter(|_| self.p > 0.0)?;
        Some(Choice { stream: Stream::new(key.seed, self.site, key.micro_batch, Purpose::BaseDropout), p: self.p })
    }
}

/// The stream of random numbers that decides, and the probability with which an element is left out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    pub(crate) stream: Stream,
    pub(crate) p: f32,
}

impl Choice {
    /// An element whose random number is below this is left out.
    pub(crate) fn threshold(&self) -> u32 {
        (f64::from(self.p) * 4_294_967_296.0) as u32
    }

    /// An element that is kept counts for those that are not.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }
}

/// A mask over a `(rows, width)` matrix.
pub(crate) struct Mask {
    pub(crate) choice: Choice,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    /// On the CPU what was drawn, as drawing it again in the backward takes long.
    pub(crate) bits: OnceCell<Bits>,
    /// The same on a GPU, where a kernel of adapters has drawn it: a bit for each element, none between rows.
    #[cfg(feature = "cuda")]
    pub(crate) on_device: OnceCell<CudaSlice<u8>>,
}

impl Mask {
    pub(crate) fn new(choice: Choice, (rows, width): (usize, usize)) -> Self {
        Self {
            choice,
            rows,
            width,
            bits: OnceCell::new(),
            #[cfg(feature = "cuda")]
            on_device: OnceCell::new(),
        }
    }
}

impl Bits {
    /// Returns true if there is a bit for each element of a matrix.
    pub(crate) fn covers(&self, rows: usize, width: usize) -> bool {
        width.div_ceil(8) <= self.bytes_per_row && rows * self.bytes_per_row <= self.bits.len()
    }

    /// The bits of sixteen elements of a row, from a column that is a multiple of 8 on.
    #[inline(always)]
    pub(crate) fn of(&self, row: usize, column: usize) -> u16 {
        let at = row * self.bytes_per_row + column / 8;
        let first = u16::from(self.bits[at]);
        // A row's last byte may have none behind it.
        first >> (column % 8) | u16::from(*self.bits.get(at + 1).unwrap_or(&0)) << 8 >> (column % 8)
    }
}

/// Kept elements of a matrix, a bit each.
#[derive(Debug)]
pub(crate) struct Bits {
    /// Row by row, the first element in the lowest bit; each row starts a byte.
    pub(crate) bits: Vec<u8>,
    pub(crate) bytes_per_row: usize,
}
