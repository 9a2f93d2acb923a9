//! 4-bit NormalFloat with double quantization (Dettmers et al., 2023, "QLoRA"), in bitsandbytes'
//! layout.
//!
//! The row-major weight is cut into flat blocks of 64, whatever its shape. Each block is scaled by
//! its largest magnitude, and each element becomes the nearest of 16 levels; two codes make a byte,
//! the first in the high nibble. The blocks' scales, less their mean, are themselves quantized to
//! 8 bits in blocks of 256: 0.516 bytes a weight in all.

use rayon::prelude::*;

use super::dynamic_map::{DynamicMap, MAP_SIZE};
use super::math::simd;

/// Weights that share a scale.
pub const BLOCK: usize = 64;
/// Scales that share a scale.
pub const NESTED_BLOCK: usize = 256;

/// The levels: quantiles of a normal distribution, scaled to [-1, 1] (QLoRA, appendix E).
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A quantized matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4 {
    /// Two codes a byte.
    pub codes: Vec<u8>,
    /// One 8-bit code a block of weights.
    pub absmax: Vec<u8>,
    /// The numbers that the codes in `absmax` stand for.
    pub nested_map: Box<DynamicMap>,
    /// One scale a block of `absmax`.
    pub nested_absmax: Vec<f32>,
    /// The mean of the blocks' scales, subtracted before they were quantized.
    pub offset: f32,
    /// The number of weights.
    pub len: usize,
}

impl Nf4 {
    /// Quantizes `len` weights. `read(first, out)` gives the weights from `first` on, in pieces, so
    /// that the matrix never exists in f32.
    pub fn quantize(len: usize, read: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        const PIECE: usize = 256 * BLOCK;
        let mut codes = vec![0; len.div_ceil(2)];
        let mut scales = vec![0.0; len.div_ceil(BLOCK)];
        codes.par_chunks_mut(PIECE / 2).zip(scales.par_chunks_mut(PIECE / BLOCK)).enumerate().for_each_init(
            || vec![0.0; PIECE],
            |weights, (piece, (codes, scales))| {
                let first = piece * PIECE;
                let weights = &mut weights[..PIECE.min(len - first)];
                read(first, weights);
                quantize_blocks(weights, codes, scales);
            },
        );
        let offset = (scales.iter().map(|&s| f64::from(s)).sum::<f64>() / scales.len().max(1) as f64) as f32;
        let nested_map = Box::new(DynamicMap::new(true));
        let mut absmax = Vec::with_capacity(scales.len());
        let mut nested_absmax = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK));
        for block in scales.chunks(NESTED_BLOCK) {
            let largest = block.iter().map(|s| (s - offset).abs()).fold(0.0, f32::max);
            nested_absmax.push(largest);
            let inverse = if largest > 0.0 { 1.0 / largest } else { 0.0 };
            absmax.extend(block.iter().map(|s| nested_map.nearest((s - offset) * inverse)));
        }
        Self { codes, absmax, nested_map, nested_absmax, offset, len }
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.absmax.len() + 4 * (self.nested_absmax.len() + MAP_SIZE + 1)
    }

    /// The weights from `first` on.
    pub fn dequantize(&self, first: usize, out: &mut [f32]) {
        let mut at = first;
        let mut out = out;
        while !out.is_empty() {
            let block = at / BLOCK;
            let skip = at % BLOCK;
            if skip == 0 && out.len() >= BLOCK {
                // A run of whole blocks, in vector code.
                let blocks = out.len() / BLOCK;
                let (head, tail) = out.split_at_mut(blocks * BLOCK);
                dequantize_blocks(self, block, head.as_chunks_mut().0);
                out = tail;
                at += blocks * BLOCK;
            } else {
                let (head, tail) = out.split_at_mut(out.len().min(BLOCK - skip));
                let scale = self.scale(block);
                for (index, value) in (at..).zip(head.iter_mut()) {
                    let byte = self.codes[index / 2];
                    *value = scale * LEVELS[usize::from(if index % 2 == 0 { byte >> 4 } else { byte & 15 })];
                }
                at += head.len();
                out = tail;
            }
        }
    }

    #[inline(always)]
    pub(crate) fn scale(&self, block: usize) -> f32 {
        // bitsandbytes rounds the product before it adds the offset: no fused multiply-add here.
        self.nested_map.value(self.absmax[block]) * self.nested_absmax[block / NESTED_BLOCK] + self.offset
    }
}

simd! {
    /// Writes the codes and the scale of each block.
    fn quantize_blocks(weights: &[f32], codes: &mut [u8], scales: &mut [f32]) {
        for ((block, codes), scale) in weights.chunks(BLOCK).zip(codes.chunks_mut(BLOCK / 2)).zip(scales) {
            *scale = quantize_block(block, codes);
        }
    }
}

/// Writes the codes of up to 64 weights and returns their scale.
#[inline(always)]
fn quantize_block(weights: &[f32], codes: &mut [u8]) -> f32 {
    let scale = weights.iter().fold(0.0f32, |max, w| max.max(w.abs()));
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut levels = [0u8; BLOCK];
    for (level, weight) in levels.iter_mut().zip(weights) {
        let x = weight * inverse;
        *level = (1..16).map(|upper| u8::from(x > (LEVELS[upper - 1] + LEVELS[upper]) * 0.5)).sum();
    }
    for (code, pair) in codes.iter_mut().zip(levels.as_chunks::<2>().0) {
        *code = pair[0] << 4 | pair[1];
    }
    scale
}

/// Dequantizes whole blocks, with the CPU's table look-up where it has one.
fn dequantize_blocks(weights: &Nf4, first: usize, out: &mut [[f32; BLOCK]]) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            // SAFETY: the features were just detected.
            #[expect(unsafe_code, reason = "calls code compiled for a CPU feature")]
            return unsafe { x86::dequantize_blocks_avx512(weights, first, out) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just detected.
            #[expect(unsafe_code, reason = "calls code compiled for a CPU feature")]
            return unsafe { x86::dequantize_blocks_avx2(weights, first, out) };
        }
    }
    dequantize_blocks_scalar(weights, first, out);
}

fn dequantize_blocks_scalar(weights: &Nf4, first: usize, out: &mut [[f32; BLOCK]]) {
    for (block, out) in (first..).zip(out) {
        let scale = weights.scale(block);
        let codes = &weights.codes[block * BLOCK / 2..][..BLOCK / 2];
        for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            *pair = [scale * LEVELS[usize::from(byte >> 4)], scale * LEVELS[usize::from(byte & 15)]];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, LEVELS, Nf4};

    /// Sixteen codes, a byte each in order, from eight packed bytes.
    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn unpack(packed: &[u8; 8]) -> __m128i {
        let bytes = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(i64::from_le_bytes(*packed)));
        let high = _mm_srli_epi16(bytes, 4);
        let low = _mm_slli_epi16(_mm_and_si128(bytes, _mm_set1_epi16(15)), 8);
        _mm_or_si128(high, low)
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn dequantize_blocks_avx512(weights: &Nf4, first: usize, out: &mut [[f32; BLOCK]]) {
        let [l0, l1, l2, l3, l4, l5, l6, l7, l8, l9, l10, l11, l12, l13, l14, l15] = LEVELS;
        let levels = _mm512_setr_ps(l0, l1, l2, l3, l4, l5, l6, l7, l8, l9, l10, l11, l12, l13, l14, l15);
        for (block, out) in (first..).zip(out) {
            let scale = _mm512_set1_ps(weights.scale(block));
            let packed = weights.codes[block * BLOCK / 2..][..BLOCK / 2].as_chunks::<8>().0;
            for (out, packed) in out.as_chunks_mut::<16>().0.iter_mut().zip(packed) {
                let codes = _mm512_cvtepu8_epi32(unpack(packed));
                let values = _mm512_mul_ps(_mm512_permutexvar_ps(codes, levels), scale);
                // SAFETY: `out` is sixteen floats; the store needs no alignment.
                #[expect(unsafe_code, reason = "vector stores take raw pointers")]
                unsafe {
                    _mm512_storeu_ps(out.as_mut_ptr(), values);
                }
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn dequantize_blocks_avx2(weights: &Nf4, first: usize, out: &mut [[f32; BLOCK]]) {
        let [l0, l1, l2, l3, l4, l5, l6, l7, h0, h1, h2, h3, h4, h5, h6, h7] = LEVELS;
        let lower = _mm256_setr_ps(l0, l1, l2, l3, l4, l5, l6, l7);
        let upper = _mm256_setr_ps(h0, h1, h2, h3, h4, h5, h6, h7);
        for (block, out) in (first..).zip(out) {
            let scale = _mm256_set1_ps(weights.scale(block));
            let packed = weights.codes[block * BLOCK / 2..][..BLOCK / 2].as_chunks::<8>().0;
            for (out, packed) in out.as_chunks_mut::<16>().0.iter_mut().zip(packed) {
                let codes = unpack(packed);
                let halves = [codes, _mm_srli_si128(codes, 8)];
                for (out, half) in out.as_chunks_mut::<8>().0.iter_mut().zip(halves) {
                    let index = _mm256_cvtepu8_epi32(half);
                    // Bit 3 of the code chooses the half of the table.
                    let is_upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
                    let values = _mm256_blendv_ps(
                        _mm256_permutevar8x32_ps(lower, index),
                        _mm256_permutevar8x32_ps(upper, index),
                        is_upper,
                    );
                    // SAFETY: `out` is eight floats; the store needs no alignment.
                    #[expect(unsafe_code, reason = "vector stores take raw pointers")]
                    unsafe {
                        _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(values, scale));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::numbers;

    fn quantized(values: &[f32]) -> Nf4 {
        Nf4::quantize(values.len(), |first, out| out.copy_from_slice(&values[first..first + out.len()]))
    }

    #[test]
    fn any_range_dequantizes_to_the_same_numbers_on_every_path() {
        let values = numbers(64 * 300 + 37, 5);
        let weights = quantized(&values);
        let mut all = vec![0.0; values.len()];
        weights.dequantize(0, &mut all);
        let mut blocks = vec![[0.0; BLOCK]; 300];
        dequantize_blocks_scalar(&weights, 0, &mut blocks);
        assert_eq!(blocks.as_flattened(), &all[..64 * 300]);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            let mut other = vec![[0.0; BLOCK]; 300];
            // SAFETY: the feature was just detected.
            #[expect(unsafe_code, reason = "calls code compiled for a CPU feature")]
            unsafe {
                x86::dequantize_blocks_avx2(&weights, 0, &mut other);
            }
            assert_eq!(other, blocks);
        }
        for (first, len) in [(0, 1), (63, 2), (1, 200), (64, 64), (100, 5_000), (19_200, 37)] {
            let mut part = vec![0.0; len];
            weights.dequantize(first, &mut part);
            assert_eq!(part, all[first..first + len], "{first}, {len}");
        }
        let worst = all.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Half the widest gap between levels (0.304), for scales near 1, and the scale's own error.
        assert!(worst < 0.17, "{worst}");
    }

    #[test]
    fn storage_is_close_to_half_a_byte_a_weight() {
        let weights = quantized(&numbers(1 << 20, 1));
        assert!((weights.bytes() as f64) < 0.53 * f64::from(1 << 20));
    }

    #[test]
    fn zeros_stay_zero() {
        let weights = quantized(&[0.0; 200]);
        let mut out = [1.0; 200];
        weights.dequantize(0, &mut out);
        assert_eq!(out, [0.0; 200]);
    }
}
