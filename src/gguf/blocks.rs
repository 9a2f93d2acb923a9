//! Numbers in blocks that share a scale, widened to f32.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{Device, Result};

use super::q8_0;

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    pub(super) dtype: GgmlDType,
    pub(super) layout: Layout,
    /// Numbers in a row: whole blocks.
    pub(super) columns: usize,
}

/// What llama.cpp's converter changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Nothing.
    Same,
    /// Rows of heads of this size: the two halves that are rotated together lie interleaved.
    Interleaved { head_dim: usize },
    /// Weights of a norm, of which transformers stores the difference from 1.
    FromOne,
}

impl Blocks {
    /// Q8_0 with nothing changed, in rows of `columns`.
    #[must_use]
    pub fn q8_0(columns: usize) -> Self {
        Self { dtype: GgmlDType::Q8_0, layout: Layout::Same, columns }
    }

    /// The numbers from `first` on, in f32 and in transformers' order; `bytes` are the tensor's.
    pub fn read(&self, bytes: &[u8], first: usize, out: &mut [f32]) {
        match self.layout {
            Layout::Same => self.widen(bytes, first, out),
            Layout::FromOne => {
                self.widen(bytes, first, out);
                out.iter_mut().for_each(|weight| *weight -= 1.0);
            }
            Layout::Interleaved { head_dim } => {
                let (mut at, mut rest) = (first, out);
                while !rest.is_empty() {
                    let (row, column) = (at / self.columns, at % self.columns);
                    let (piece, after) = rest.split_at_mut((self.columns - column).min(rest.len()));
                    let (head, within) = (row / head_dim, row % head_dim);
                    let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
                    self.widen(bytes, (head * head_dim + 2 * pair + half) * self.columns + column, piece);
                    at += piece.len();
                    rest = after;
                }
            }
        }
    }

    /// The numbers from `first` on, in the file's order.
    fn widen(&self, bytes: &[u8], first: usize, out: &mut [f32]) {
        if self.dtype == GgmlDType::Q8_0 {
            return q8_0::widen(bytes, first, out);
        }
        let (block, size) = (self.dtype.block_size(), self.dtype.type_size());
        let blocks = first / block..(first + out.len()).div_ceil(block);
        let count = blocks.len() * block;
        let widen = || -> Result<Vec<f32>> {
            let part = &bytes[blocks.start * size..blocks.end * size];
            qtensor_from_ggml(self.dtype, part, vec![count], &Device::Cpu)?.dequantize(&Device::Cpu)?.to_vec1()
        };
        let numbers = widen().expect("blocks are whole, and of types that are read");
        out.copy_from_slice(&numbers[first - blocks.start * block..][..out.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_come_back_as_two_halves() {
        // Two heads of four rows, two columns: row r holds 10·r and 10·r + 1.
        let numbers: Vec<f32> = (0..16).map(|i| (i / 2 * 10 + i % 2) as f32).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let blocks = Blocks { dtype: GgmlDType::F32, layout: Layout::Interleaved { head_dim: 4 }, columns: 2 };
        let mut rows = vec![0.0; 16];
        blocks.read(&bytes, 0, &mut rows);
        let firsts: Vec<f32> = rows.iter().step_by(2).copied().collect();
        assert_eq!(firsts, [0.0, 20.0, 10.0, 30.0, 40.0, 60.0, 50.0, 70.0]);
        let mut part = vec![0.0; 5];
        blocks.read(&bytes, 3, &mut part);
        assert_eq!(part, rows[3..8]);
    }
}
