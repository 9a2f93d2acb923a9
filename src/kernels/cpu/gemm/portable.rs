//! The same on any processor: f32 in vectors of the compiler, bf16 by definition.
//!
//! On x86-64 without FMA an f32 product is rounded before it is added: other bits than elsewhere.

#![expect(unsafe_code, reason = "packed words are reached by raw pointers")]

use super::arithmetic::dot_pair;
use super::kernel::{Kernel, Strips};
use super::weights::{Source, round_all};

const ROWS: usize = 4;
const STRIP: usize = 16;

/// f32.
#[derive(Clone, Copy)]
pub(super) struct Float32;

/// bf16.
#[derive(Clone, Copy)]
pub(super) struct Bfloat16;

impl Kernel for Float32 {
    type Number = f32;
    const ROWS: usize = ROWS;
    const STRIP: usize = STRIP;
    const TERMS: usize = 1;
    const WORDS: usize = 1;

    fn in_place(source: Source<'_>) -> Option<&[f32]> {
        match source {
            Source::F32(data) => Some(data),
            _ => None,
        }
    }

    fn read(source: Source<'_>, first: usize, to: &mut [f32]) {
        source.read(first, to);
    }

    fn narrow(to: &mut [f32], from: &[f32]) {
        to.copy_from_slice(from);
    }

    unsafe fn transpose(to: *mut u32, width: usize, lanes: usize, lines: &[*const f32], len: usize, _ahead: usize) {
        for lane in 0..lanes {
            for k in 0..len {
                let value = lines.get(lane).map_or(0.0, |line| unsafe { *line.add(k) });
                unsafe { *to.cast::<f32>().add(k * width + lane) = value };
            }
        }
    }

    unsafe fn interleave(to: *mut u32, strip_words: usize, lines: [*const f32; 2], columns: usize) {
        for column in 0..columns.next_multiple_of(STRIP) {
            let value = if column < columns { unsafe { *lines[0].add(column) } } else { 0.0 };
            unsafe { *to.cast::<f32>().add(column / STRIP * strip_words + column % STRIP) = value };
        }
    }

    unsafe fn panel(rows: usize, units: usize, x: *const u32, strips: &Strips) {
        let x = unsafe { std::slice::from_raw_parts(x.cast::<f32>(), units * rows) };
        unsafe {
            each_strip(rows, strips, |sums, weights| {
                let weights = std::slice::from_raw_parts(weights.cast::<f32>(), units * STRIP);
                for (x, w) in x.chunks_exact(rows).zip(weights.as_chunks::<STRIP>().0) {
                    for (sums, &x) in sums.iter_mut().zip(x) {
                        for lane in 0..STRIP {
                            sums[lane] = multiply_add(x, w[lane], sums[lane]);
                        }
                    }
                }
            });
        }
    }
}

impl Kernel for Bfloat16 {
    type Number = u16;
    const ROWS: usize = ROWS;
    const STRIP: usize = STRIP;
    const TERMS: usize = 2;
    const WORDS: usize = 1;

    fn in_place(source: Source<'_>) -> Option<&[u16]> {
        source.bf16_bits()
    }

    fn read(source: Source<'_>, first: usize, to: &mut [u16]) {
        source.read_rounded(first, to, round_all);
    }

    fn narrow(to: &mut [u16], from: &[f32]) {
        round_all(to, from);
    }

    unsafe fn transpose(to: *mut u32, width: usize, lanes: usize, lines: &[*const u16], len: usize, _ahead: usize) {
        for lane in 0..lanes {
            let line = lines.get(lane).map(|line| unsafe { std::slice::from_raw_parts(*line, len) });
            for unit in 0..len.div_ceil(2) {
                let number = |k: usize| line.and_then(|line| line.get(k)).copied().unwrap_or(0);
                let word = u32::from(number(2 * unit)) | u32::from(number(2 * unit + 1)) << 16;
                unsafe { *to.add(unit * width + lane) = word };
            }
        }
    }

    unsafe fn interleave(to: *mut u32, strip_words: usize, lines: [*const u16; 2], columns: usize) {
        for column in 0..columns.next_multiple_of(STRIP) {
            let [low, high] = lines.map(|line| if column < columns { unsafe { *line.add(column) } } else { 0 });
            let word = u32::from(low) | u32::from(high) << 16;
            unsafe { *to.add(column / STRIP * strip_words + column % STRIP) = word };
        }
    }

    unsafe fn panel(rows: usize, units: usize, x: *const u32, strips: &Strips) {
        let pair = |word: u32| [word as u16, (word >> 16) as u16];
        unsafe {
            each_strip(rows, strips, |sums, weights| {
                for unit in 0..units {
                    for (r, sums) in sums[..rows].iter_mut().enumerate() {
                        let x = pair(*x.add(unit * rows + r));
                        for (lane, sum) in sums.iter_mut().enumerate() {
                            *sum = dot_pair(*sum, x, pair(*weights.add(unit * STRIP + lane)));
                        }
                    }
                }
            });
        }
    }
}

/// Calls `f` with the sums of each strip and its weights.
unsafe fn each_strip(rows: usize, strips: &Strips, f: impl Fn(&mut [[f32; STRIP]; ROWS], *const u32)) {
    for strip in 0..strips.count() {
        let columns = (strips.columns - strip * STRIP).min(STRIP);
        let mut sums = [[0.0f32; STRIP]; ROWS];
        for (r, sums) in sums[..rows].iter_mut().enumerate() {
            let y = strips.y.wrapping_add(r * strips.y_stride + strip * STRIP);
            if strips.add {
                unsafe { std::ptr::copy_nonoverlapping(y, sums.as_mut_ptr(), columns) };
            }
        }
        f(&mut sums, unsafe { strips.weights.add(strip * strips.strip_words) });
        for (r, sums) in sums[..rows].iter().enumerate() {
            let y = strips.y.wrapping_add(r * strips.y_stride + strip * STRIP);
            unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), y, columns) };
        }
    }
}

#[inline(always)]
fn multiply_add(x: f32, w: f32, sum: f32) -> f32 {
    // Without the instruction a fused one is a call of the C library.
    if cfg!(any(not(target_arch = "x86_64"), target_feature = "fma")) { x.mul_add(w, sum) } else { x * w + sum }
}
