//! What a model's frozen layers make of one text, computed once and kept.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::kernels::buffer;
use crate::kernels::cpu::memory::Buffer;

/// Rows of hidden states, `(tokens, D)`, or `(1, D)` where the head alone is trained.
#[derive(Clone, Debug)]
pub struct FrozenRows {
    numbers: Arc<Buffer<f32>>,
    range: Range<usize>,
}

impl FrozenRows {
    /// A range of numbers in a buffer, whole rows.
    #[must_use]
    pub fn new(numbers: Arc<Buffer<f32>>, range: Range<usize>) -> Self {
        Self { numbers, range }
    }

    /// All of some numbers.
    #[must_use]
    pub fn owned(numbers: Vec<f32>) -> Self {
        let range = 0..numbers.len();
        Self { numbers: Arc::new(Buffer::Owned(numbers)), range }
    }

    /// The numbers.
    #[must_use]
    pub fn numbers(&self) -> &[f32] {
        &self.numbers[self.range.clone()]
    }

    /// Rows of several texts one after the other, `(N, D)`; `None` if a text has none.
    ///
    /// # Errors
    /// If they are not whole rows of `width`.
    pub fn stack<'a>(texts: impl Iterator<Item = Option<&'a Self>> + Clone, width: usize) -> Result<Option<Tensor>> {
        let mut len = 0;
        for text in texts.clone() {
            let Some(text) = text else { return Ok(None) };
            len += text.range.len();
        }
        let mut stacked = Vec::with_capacity(len);
        for text in texts.flatten() {
            stacked.extend_from_slice(text.numbers());
            // Pages of a file would count in this process's memory for as long as it is mapped.
            text.numbers.release_range(text.range.clone());
        }
        buffer::tensor(stacked, (len / width, width)).map(Some)
    }
}
