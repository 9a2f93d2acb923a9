//! Q8_0: blocks of 32 numbers in 8 bits and their scale in f16. `bundle --int8` stores matrices so in safetensors files,
//! as tensors of bytes.

use anyhow::{Result, ensure};
use half::f16;
use rayon::prelude::*;

/// A tensor in 8 bits is stored as bytes, under the name of its matrix and this ending.
pub const SUFFIX: &str = ".q8_0";
/// Numbers that share a scale.
pub const BLOCK: usize = 32;
/// The scale and the numbers.
pub const BLOCK_BYTES: usize = 2 + BLOCK;

/// The shape of the matrix, from the shape of the bytes that store it.
#[must_use]
pub fn shape(stored: &[usize]) -> Option<Vec<usize>> {
    match *stored {
        [rows, bytes] if bytes % BLOCK_BYTES == 0 => Some(vec![rows, bytes / BLOCK_BYTES * BLOCK]),
        _ => None,
    }
}

/// Rounds whole blocks of numbers; `name` is for the error.
///
/// # Errors
/// If a number is too large for a scale in f16.
pub fn quantize(name: &str, values: &[f32]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; values.len() / BLOCK * BLOCK_BYTES];
    let blocks = bytes.par_chunks_exact_mut(BLOCK_BYTES).zip(values.par_chunks_exact(BLOCK));
    let is_finite = blocks.map(|(bytes, values)| {
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = f16::from_f32(largest / 127.0);
        bytes[..2].copy_from_slice(&scale.to_le_bytes());
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        for (byte, value) in bytes[2..].iter_mut().zip(values) {
            *byte = (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
        }
        scale.is_finite()
    });
    ensure!(is_finite.reduce(|| true, |a, b| a & b), "`{name}` holds numbers too large for 8 bits");
    Ok(bytes)
}

/// The numbers from `first` on, in f32. candle gives the same numbers, but is not optimised here.
pub(super) fn widen(bytes: &[u8], first: usize, mut out: &mut [f32]) {
    let mut at = first;
    while !out.is_empty() {
        let (block, within) = (&bytes[at / BLOCK * BLOCK_BYTES..][..BLOCK_BYTES], at % BLOCK);
        let (piece, rest) = out.split_at_mut((BLOCK - within).min(out.len()));
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (number, &byte) in piece.iter_mut().zip(&block[2 + within..]) {
            *number = f32::from(byte as i8) * scale;
        }
        at += piece.len();
        out = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Blocks;
    use super::*;

    #[test]
    fn numbers_come_back_within_half_a_step_of_their_block() {
        // Blocks of unequal sizes, one of zeros, and one with its largest number below zero.
        let values: Vec<f32> = (0..5 * BLOCK)
            .map(|i| match i / BLOCK {
                2 => 0.0,
                block => ((i * 37 % 101) as f32 - 60.0) * 10_f32.powi(block as i32 - 3),
            })
            .collect();
        let bytes = quantize("w", &values).unwrap();
        assert_eq!(shape(&[1, bytes.len()]), Some(vec![1, values.len()]));
        let mut read = vec![0.0; values.len()];
        Blocks::q8_0(values.len()).read(&bytes, 0, &mut read);
        for (block, read) in values.chunks(BLOCK).zip(read.chunks(BLOCK)) {
            let largest = block.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            // The scale is rounded to f16, by a part in 2048 at most.
            let most = largest / 127.0 * 0.5 * 1.001;
            assert!(block.iter().zip(read).all(|(a, b)| (a - b).abs() <= most), "{block:?} {read:?}");
        }
        // From the middle of a block.
        let mut part = vec![0.0; 50];
        Blocks::q8_0(values.len()).read(&bytes, 7, &mut part);
        assert_eq!(part, read[7..57]);
        assert!(quantize("w", &[1e9; BLOCK]).is_err());
    }
}
