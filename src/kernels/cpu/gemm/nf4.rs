//! NF4 read straight into bf16: the bits of rounding what it stands for in f32.

#![expect(unsafe_code, reason = "vector loads and stores take raw pointers")]

use super::arithmetic::round;
use crate::kernels::cpu::nf4::{BLOCK, LEVELS, Nf4};

/// Whether this CPU looks up thirty-two codes at once.
pub(super) fn has_look_up() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::path::has_avx512_bf16();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The weights from `first` on. Only where the CPU [has the look-up](has_look_up).
pub(super) fn read(weights: &Nf4, first: usize, out: &mut [u16]) {
    let (mut at, mut out) = (first, out);
    while !out.is_empty() {
        let (block, skip) = (at / BLOCK, at % BLOCK);
        let whole = if skip == 0 { out.len() / BLOCK } else { 0 };
        let len = if whole > 0 { whole * BLOCK } else { out.len().min(BLOCK - skip) };
        let (head, tail) = out.split_at_mut(len);
        if whole > 0 {
            read_blocks(weights, block, head.as_chunks_mut().0);
        } else if (block + 1) * BLOCK <= weights.len {
            // Decoding a whole block and taking a part is faster than going code by code.
            let mut all = [[0; BLOCK]];
            read_blocks(weights, block, &mut all);
            head.copy_from_slice(&all[0][skip..][..len]);
        } else {
            let scale = weights.scale(block);
            for (index, value) in (at..).zip(head) {
                let byte = weights.codes[index / 2];
                let code = if index % 2 == 0 { byte >> 4 } else { byte & 15 };
                *value = round(scale * LEVELS[usize::from(code)]);
            }
        }
        (at, out) = (at + len, tail);
    }
}

fn read_blocks(weights: &Nf4, first: usize, out: &mut [[u16; BLOCK]]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `read` is called only where the CPU has the instructions.
    unsafe {
        x86_64::read_blocks(weights, first, out);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (weights, first, out);
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;

    use super::{BLOCK, LEVELS, Nf4};

    /// A block's sixteen levels are scaled and rounded once; then a code is a look-up (`VPERMW`).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) fn read_blocks(weights: &Nf4, first: usize, out: &mut [[u16; BLOCK]]) {
        let codes = &weights.codes[first * BLOCK / 2..][..out.len() * BLOCK / 2];
        // SAFETY: sixteen levels; sixteen bytes of codes at a time, for thirty-two of the output.
        unsafe {
            let levels = _mm512_loadu_ps(LEVELS.as_ptr());
            for (index, out) in out.iter_mut().enumerate() {
                let scaled = _mm512_mul_ps(levels, _mm512_set1_ps(weights.scale(first + index)));
                let table: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(scaled));
                let table = _mm512_castsi256_si512(table);
                for half in 0..2 {
                    let packed = _mm_loadu_si128(codes.as_ptr().add(index * BLOCK / 2 + 16 * half).cast());
                    let bytes = _mm512_cvtepu8_epi32(packed);
                    let low = _mm512_slli_epi32(_mm512_and_si512(bytes, _mm512_set1_epi32(15)), 16);
                    let indices = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), low);
                    let values = _mm512_permutexvar_epi16(indices, table);
                    _mm512_storeu_si512(out.as_mut_ptr().add(32 * half).cast(), values);
                }
            }
        }
    }
}
