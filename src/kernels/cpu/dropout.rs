//! Dropout with a mask that is drawn once, a bit for each element.

#![expect(unsafe_code, reason = "calls code compiled for a CPU feature")]

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::lanes::{Lanes, for_each_cpu};
use super::math::simd;
use super::par_rows;
use crate::kernels::buffer::{elements, modify, new_rows, tensor};
use crate::kernels::mask::{Bits, Mask};
use crate::rng::Stream;

/// `x` with what is left out set to zero, and the rest scaled.
pub(crate) fn dropout(x: &Tensor, mask: &Mask) -> Result<Tensor> {
    tensor(keep_and_scale(&elements(x)?, mask.width, mask.bits(), mask.choice.scale()), x.shape().clone())
}

/// [`dropout`] in place.
pub(crate) fn dropout_in_place(x: &Tensor, mask: &Mask) -> Result<()> {
    modify(x, |x| keep_and_scale_in_place(x, mask.width, mask.bits(), mask.choice.scale()))
}

simd! {
    fn keep_and_scale(x: &[f32], width: usize, bits: &Bits, scale: f32) -> Vec<f32> {
        new_rows(x.len(), width, |first, block| {
            for (row, out) in (first..).zip(block.chunks_exact_mut(width)) {
                for (out, x) in out.iter_mut().zip(&x[row * width..]) {
                    *out = scale * x;
                }
                bits.apply(row, 0, out);
            }
        })
    }
}

simd! {
    fn keep_and_scale_in_place(x: &mut [f32], width: usize, bits: &Bits, scale: f32) {
        par_rows(x, width, |first, block| {
            for (row, x) in (first..).zip(block.chunks_exact_mut(width)) {
                for x in x.iter_mut() {
                    *x *= scale;
                }
                bits.apply(row, 0, x);
            }
        });
    }
}

impl Mask {
    /// The kept elements, drawn on first use.
    pub(super) fn bits(&self) -> &Bits {
        self.bits.get_or_init(|| {
            let bytes_per_row = self.width.div_ceil(8);
            let mut bits = vec![0; self.rows * bytes_per_row];
            draw_bits(&mut bits, &self.choice.stream, self.choice.threshold(), self.width);
            Bits { bits, bytes_per_row }
        })
    }
}

impl Bits {
    /// Clears what is not kept of a row's elements from `column`, a multiple of 8, on.
    #[inline(always)]
    pub(super) fn apply(&self, row: usize, column: usize, x: &mut [f32]) {
        let bits = &self.bits[row * self.bytes_per_row + column / 8..];
        let (bytes, rest) = x.as_chunks_mut::<8>();
        for (x, &byte) in bytes.iter_mut().zip(bits) {
            keep(x, byte);
        }
        if !rest.is_empty() {
            let mut last = [0.0; 8];
            last[..rest.len()].copy_from_slice(rest);
            keep(&mut last, bits[bytes.len()]);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}

/// Clears the elements whose bit is not set.
#[inline(always)]
fn keep(x: &mut [f32; 8], byte: u8) {
    /// Each bit of a byte as 32 bits: loading them is faster than making them.
    static SPREAD: [[u32; 8]; 256] = {
        let mut spread = [[0; 8]; 256];
        let mut index = 0;
        while index < 8 * 256 {
            spread[index / 8][index % 8] = if ((index / 8) >> (index % 8)) & 1 == 0 { 0 } else { u32::MAX };
            index += 1;
        }
        spread
    };
    for (x, bits) in x.iter_mut().zip(SPREAD[usize::from(byte)]) {
        *x = f32::from_bits(x.to_bits() & bits);
    }
}

/// Sets the bits of the elements whose random number is at least `threshold`.
fn draw_bits(bits: &mut [u8], stream: &Stream, threshold: u32, width: usize) {
    let bytes_per_row = width.div_ceil(8);
    // A few rows a task: drawing is slow enough to be worth one.
    let rows = (16_384 / width).max(1);
    bits.par_chunks_mut(rows * bytes_per_row).enumerate().for_each(|(index, block)| {
        for (row, bits) in (index * rows..).zip(block.chunks_exact_mut(bytes_per_row)) {
            // SAFETY: needs nothing but the instructions that are chosen for this CPU.
            unsafe { draw_row(bits, stream, threshold, (row * width) as u64, width) }
        }
    });
}

for_each_cpu! {
    /// The bits of `width` elements from `first` on.
    fn draw_row(bits: &mut [u8], stream: &Stream, threshold: u32, first: u64, width: usize) = draw_lanes<;>;
}

#[inline(always)]
unsafe fn draw_lanes<L: Lanes>(bits: &mut [u8], stream: &Stream, threshold: u32, first: u64, width: usize) {
    let skip = first % 4;
    let mut next = unsafe { bits_of_64::<L>(stream, threshold, first / 4) };
    for (piece, bytes) in bits.chunks_mut(8).enumerate() {
        let mut kept = next >> skip;
        if skip > 0 || 64 * (piece + 1) < width {
            next = unsafe { bits_of_64::<L>(stream, threshold, first / 4 + 16 * (piece as u64 + 1)) };
        }
        if skip > 0 {
            kept |= next << (64 - skip);
        }
        bytes.copy_from_slice(&kept.to_le_bytes()[..bytes.len()]);
    }
}

/// A function and no closure: called twice, a closure is compiled on its own, and without the CPU's instructions.
#[inline(always)]
unsafe fn bits_of_64<L: Lanes>(stream: &Stream, threshold: u32, block: u64) -> u64 {
    let words = stream.sixteen_blocks(block);
    let mut all = 0;
    for (word, numbers) in words.iter().enumerate() {
        all |= every_fourth(unsafe { L::at_least(numbers, threshold) }) << word;
    }
    all
}

/// Moves bit i to bit 4 i.
#[inline(always)]
fn every_fourth(bits: u16) -> u64 {
    let spread = u64::from(bits);
    let spread = (spread | spread << 24) & 0x0000_00ff_0000_00ff;
    let spread = (spread | spread << 12) & 0x000f_000f_000f_000f;
    let spread = (spread | spread << 6) & 0x0303_0303_0303_0303;
    (spread | spread << 3) & 0x1111_1111_1111_1111
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::mask::Choice;
    use crate::rng::Purpose;

    #[test]
    fn the_same_elements_are_kept_whatever_the_cut_into_rows() {
        let choice = Choice { stream: Stream::new(1, 2, 3, Purpose::Dropout), p: 0.3 };
        let mut ones = vec![1.0; 100_000];
        Mask::new(choice, (1, ones.len())).bits().apply(0, 0, &mut ones);
        let share = ones.iter().filter(|&&x| x > 0.0).count() as f64 / 1e5;
        assert!((share - 0.7).abs() < 0.01, "{share}");
        // Bit by bit what the stream says, at rows that start inside a block.
        let mut numbers = vec![0; 7 * 333];
        choice.stream.fill(0, &mut numbers);
        let mask = Mask::new(choice, (7, 333));
        for (element, &number) in numbers.iter().enumerate() {
            let bit = mask.bits().of(element / 333, element % 333) & 1;
            assert_eq!(bit == 1, number >= choice.threshold(), "element {element}");
        }
        let mut part = vec![1.0; 301];
        Mask::new(choice, (10, 333)).bits().apply(7, 32, &mut part);
        assert_eq!(part, ones[7 * 333 + 32..8 * 333]);
    }
}
