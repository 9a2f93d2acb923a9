//! Dropout: each element is zero with probability p, and counts 1 / (1 − p) otherwise.
//!
//! What is kept is a function of a counter (see [`crate::rng`]), so a layer that is computed again
//! draws the same mask.

use std::rc::Rc;

use candle_core::Result;
use rayon::prelude::*;

use super::tape::{DropoutKey, Tape, Value};
use crate::kernels::buffer::{elements, modify, scratch, tensor};
use crate::kernels::cpu::math::simd;
use crate::kernels::cpu::par_rows;
use crate::rng::{Purpose, Stream};

/// A site in a frozen base where the model itself drops elements while it trains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability with which an element is left out.
    pub p: f32,
    /// Which random stream draws the mask: its number in the model.
    pub site: u32,
}

impl Dropout {
    /// The stream of the mask, or `None` where nothing is left out.
    pub(crate) fn stream(&self, key: Option<DropoutKey>) -> Option<Stream> {
        let key = key.filter(|_| self.p > 0.0)?;
        Some(Stream::new(key.seed, self.site, key.micro_batch, Purpose::BaseDropout))
    }

    /// Whether anything is left out on this tape.
    #[must_use]
    pub fn is_active(&self, tape: &Tape) -> bool {
        self.p > 0.0 && tape.dropout().is_some()
    }
}

/// Elements whose random number is below this are left out.
pub(crate) fn threshold(p: f32) -> u32 {
    (f64::from(p) * 4_294_967_296.0) as u32
}

/// Drops elements of `x` `(N, D)`.
///
/// # Errors
/// If `x` is not a matrix of f32.
pub fn dropout(tape: &Tape, x: Value, site: &Dropout) -> Result<Value> {
    let Some(stream) = site.stream(tape.dropout()) else { return Ok(x) };
    let shape = x.tensor().dims2()?;
    #[cfg(feature = "cuda")]
    if x.tensor().device().is_cuda() {
        return crate::kernels::cuda::elementwise::dropout(tape, &x, stream, site.p);
    }
    let mask = Mask::draw(&stream, site.p, shape);
    let scale = 1.0 / (1.0 - site.p);
    let mut output = scratch(shape.0 * shape.1);
    keep_and_scale(&mut output, &elements(x.tensor())?, shape.1, &mask, scale);
    let output = tensor(output, shape)?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    Ok(tape.record(output, move |mut incoming| {
        // The gradient that arrives is ours alone, more often than not: then it is changed in place.
        if Rc::get_mut(&mut incoming).is_none() {
            incoming = Rc::new(incoming.copy()?);
        }
        modify(&incoming, |g| keep_and_scale_in_place(g, shape.1, &mask, scale))?;
        gradient.add(incoming)
    }))
}

simd! {
    fn keep_and_scale(out: &mut [f32], x: &[f32], width: usize, mask: &Mask, scale: f32) {
        par_rows(out, width, |first, block| {
            for (row, out) in (first..).zip(block.chunks_exact_mut(width)) {
                for (out, x) in out.iter_mut().zip(&x[row * width..]) {
                    *out = scale * x;
                }
                mask.apply(row, 0, out);
            }
        });
    }
}

simd! {
    fn keep_and_scale_in_place(x: &mut [f32], width: usize, mask: &Mask, scale: f32) {
        par_rows(x, width, |first, block| {
            for (row, x) in (first..).zip(block.chunks_exact_mut(width)) {
                for x in x.iter_mut() {
                    *x *= scale;
                }
                mask.apply(row, 0, x);
            }
        });
    }
}

/// A dropout mask: which elements of a matrix are kept, a bit each.
pub(crate) struct Mask {
    /// Row by row, the first element in the lowest bit; each row starts a byte.
    bits: Vec<u8>,
    bytes_per_row: usize,
}

impl Mask {
    /// Draws whether each element of a `(rows, width)` matrix is kept, with probability 1 − p.
    pub(crate) fn draw(stream: &Stream, p: f32, (rows, width): (usize, usize)) -> Self {
        let bytes_per_row = width.div_ceil(8);
        let mut bits = vec![0; rows * bytes_per_row];
        draw_bits(&mut bits, stream, threshold(p), width);
        Self { bits, bytes_per_row }
    }

    /// Clears what is not kept of a row's elements from `column`, a multiple of 8, on.
    #[inline(always)]
    pub(crate) fn apply(&self, row: usize, column: usize, x: &mut [f32]) {
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

simd! {
    /// Sets the bits of the elements whose random number is at least `threshold`.
    fn draw_bits(bits: &mut [u8], stream: &Stream, threshold: u32, width: usize) {
        const PIECE: usize = 256;
        let bytes_per_row = width.div_ceil(8);
        // A few rows a task: drawing is slow enough to be worth one.
        let rows = (16_384 / width).max(1);
        bits.par_chunks_mut(rows * bytes_per_row).enumerate().for_each(|(index, block)| {
            let (mut numbers, mut flags) = ([0; PIECE], [0u8; PIECE]);
            for (row, bits) in (index * rows..).zip(block.chunks_exact_mut(bytes_per_row)) {
                for (piece, bits) in bits.chunks_mut(PIECE / 8).enumerate() {
                    let column = piece * PIECE;
                    let numbers = &mut numbers[..PIECE.min(width - column)];
                    stream.fill((row * width + column) as u64, numbers);
                    for (flag, &number) in flags.iter_mut().zip(numbers.iter()) {
                        *flag = u8::from(number >= threshold);
                    }
                    for (byte, flags) in bits.iter_mut().zip(flags.as_chunks::<8>().0) {
                        // The product moves bit 8i to bit 56 + i.
                        *byte = (u64::from_le_bytes(*flags).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::numbers;

    #[test]
    fn dropout_keeps_the_mean_and_its_gradient_has_the_same_mask() {
        let site = Dropout { p: 0.25, site: 3 };
        let key = DropoutKey { seed: 1, micro_batch: 2 };
        let x: Vec<f32> = numbers(83 * 41, 1).iter().map(|x| x + 2.0).collect();
        let (value, gradient) = Value::leaf(tensor(x.clone(), (83, 41)).unwrap());
        let tape = Tape::recording(Some(key));
        let y = dropout(&tape, value, &site).unwrap();
        let output = elements(y.tensor()).unwrap().to_vec();
        let ones = tensor(vec![1.0; x.len()], (83, 41)).unwrap();
        tape.backward(&y, ones).unwrap();
        let gradient = gradient.take().unwrap();
        let gradient = elements(&gradient).unwrap();
        let kept = output.iter().filter(|&&y| y != 0.0).count() as f32 / x.len() as f32;
        // Three deviations of a binomial of 3,403.
        assert!((kept - 0.75).abs() < 0.023, "{kept} is kept");
        for ((x, y), g) in x.iter().zip(&output).zip(gradient.iter()) {
            let factor = if *y == 0.0 { 0.0 } else { 4.0 / 3.0 };
            assert!((y - factor * x).abs() < 1e-5 && (g - factor).abs() < 1e-6);
        }
    }
}
