//! Micro-kernels and packing for AVX2 and FMA: f32, and bf16 with the bits of AVX512_BF16.
//!
//! In bf16 operands are rounded and widened again when they are packed, with the two numbers of a pair
//! exchanged: a plain chain of f32 multiply-adds then has the order of `VDPBF16PS`. Denormals are left
//! to MXCSR, which must not change under code of the compiler: so that loop is assembly.

#![expect(unsafe_code, reason = "vector loads and stores take raw pointers")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::kernel::{Kernel, Strips};
use super::weights::{Source, round_in_place};

const ROWS: usize = 6;
const STRIP: usize = 16;

/// f32 with AVX2.
#[derive(Clone, Copy)]
pub(super) struct Float32;

/// bf16 without AVX512_BF16.
#[derive(Clone, Copy)]
pub(super) struct Bfloat16;

impl Kernel for Float32 {
    type Number = f32;
    const ROWS: usize = ROWS;
    const STRIP: usize = STRIP;
    const TERMS: usize = 1;
    const WORDS: usize = 1;
    const READS_STRIDED: bool = true;

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

    unsafe fn transpose(to: *mut u32, width: usize, lanes: usize, lines: &[*const f32], len: usize, ahead: usize) {
        unsafe { transpose::<0>(to.cast(), width, lanes, lines, len, ahead) }
    }

    unsafe fn interleave(to: *mut u32, strip_words: usize, lines: [*const f32; 2], columns: usize) {
        unsafe { copy_row(to.cast(), strip_words, lines[0], columns) }
    }

    unsafe fn panel(rows: usize, units: usize, x: *const u32, strips: &Strips) {
        unsafe {
            match rows {
                1 => panel::<1, 4>(units, x.cast(), strips),
                2 => panel::<2, 2>(units, x.cast(), strips),
                3 => panel::<3, 2>(units, x.cast(), strips),
                4 => panel::<4, 1>(units, x.cast(), strips),
                5 => panel::<5, 1>(units, x.cast(), strips),
                6 => panel::<6, 1>(units, x.cast(), strips),
                rows => unreachable!("{rows} rows in a panel"),
            }
        }
    }
}

impl Kernel for Bfloat16 {
    type Number = f32;
    const ROWS: usize = ROWS;
    const STRIP: usize = STRIP;
    const TERMS: usize = 2;
    const WORDS: usize = 2;

    fn panel_width(_rows: usize) -> usize {
        ROWS
    }

    fn in_place(_source: Source<'_>) -> Option<&[f32]> {
        None
    }

    fn read(source: Source<'_>, first: usize, to: &mut [f32]) {
        source.read(first, to);
        round_in_place(to);
    }

    fn narrow(to: &mut [f32], from: &[f32]) {
        to.copy_from_slice(from);
        round_in_place(to);
    }

    unsafe fn transpose(to: *mut u32, width: usize, lanes: usize, lines: &[*const f32], len: usize, ahead: usize) {
        unsafe { transpose::<1>(to.cast(), width, lanes, lines, len, ahead) }
    }

    unsafe fn interleave(to: *mut u32, strip_words: usize, lines: [*const f32; 2], columns: usize) {
        unsafe {
            copy_row(to.cast(), strip_words, lines[1], columns);
            copy_row(to.add(STRIP).cast(), strip_words, lines[0], columns);
        }
    }

    unsafe fn panel(rows: usize, units: usize, x: *const u32, strips: &Strips) {
        for strip in 0..strips.count() {
            let columns = (strips.columns - strip * STRIP).min(STRIP);
            let mut sums = [[0.0f32; STRIP]; ROWS];
            let row = |r: usize| strips.y.wrapping_add(r * strips.y_stride + strip * STRIP);
            unsafe {
                if strips.add {
                    for r in 0..rows {
                        std::ptr::copy_nonoverlapping(row(r), sums[r].as_mut_ptr(), columns);
                    }
                }
                let weights = strips.weights.add(strip * strips.strip_words);
                if units > 0 {
                    accumulate(&mut sums, 2 * units, x.cast(), weights.cast());
                }
                for r in 0..rows {
                    std::ptr::copy_nonoverlapping(sums[r].as_ptr(), row(r), columns);
                }
            }
        }
    }
}

/// A panel of R rows times every strip, S at a time.
#[target_feature(enable = "avx2,fma")]
unsafe fn panel<const R: usize, const S: usize>(units: usize, x: *const f32, strips: &Strips) {
    let mut strip = 0;
    while strip + S <= strips.count() {
        unsafe { tile::<R, S>(units, x, strips, strip) };
        strip += S;
    }
    while strip < strips.count() {
        unsafe { tile::<R, 1>(units, x, strips, strip) };
        strip += 1;
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const S: usize>(units: usize, x: *const f32, strips: &Strips, strip: usize) {
    prefetch_next::<R, S>(strips, strip);
    let mut sums = [[[_mm256_setzero_ps(); 2]; S]; R];
    if strips.add {
        for r in 0..R {
            for s in 0..S {
                sums[r][s] = unsafe { load(strips, r, strip + s) };
            }
        }
    }
    let (mut x, mut weights) = (x, unsafe { strips.weights.add(strip * strips.strip_words) });
    for _ in 0..units {
        let w: [[__m256; 2]; S] = std::array::from_fn(|s| unsafe {
            let w = weights.add(s * strips.strip_words).cast::<f32>();
            [_mm256_loadu_ps(w), _mm256_loadu_ps(w.add(8))]
        });
        for r in 0..R {
            let x = unsafe { _mm256_broadcast_ss(&*x.add(r)) };
            for s in 0..S {
                for half in 0..2 {
                    sums[r][s][half] = _mm256_fmadd_ps(x, w[s][half], sums[r][s][half]);
                }
            }
        }
        x = unsafe { x.add(R) };
        weights = weights.wrapping_add(strips.unit_words);
    }
    for r in 0..R {
        for s in 0..S {
            unsafe { store(strips, r, strip + s, sums[r][s]) };
        }
    }
}

/// Asks for the sums that the next tile starts with, or for those of the next panel's first.
#[inline(always)]
fn prefetch_next<const R: usize, const S: usize>(strips: &Strips, strip: usize) {
    let next = strip + S;
    let (row, next) = if next < strips.count() { (0, next) } else { (R, 0) };
    for r in 0..R {
        for s in 0..S {
            let y = strips.y.wrapping_add((row + r) * strips.y_stride + STRIP * (next + s));
            // SAFETY: every x86-64 CPU has it, and it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(y.cast()) };
        }
    }
}

/// Sixteen columns of row `r` of y; those that do not exist are zero.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load(strips: &Strips, r: usize, strip: usize) -> [__m256; 2] {
    let y = strips.y.wrapping_add(r * strips.y_stride + strip * STRIP);
    let columns = strips.columns - strip * STRIP;
    let mut few = [0.0; STRIP];
    let from = if columns >= STRIP {
        y.cast_const()
    } else {
        unsafe { std::ptr::copy_nonoverlapping(y, few.as_mut_ptr(), columns) };
        few.as_ptr()
    };
    unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store(strips: &Strips, r: usize, strip: usize, sums: [__m256; 2]) {
    let y = strips.y.wrapping_add(r * strips.y_stride + strip * STRIP);
    let columns = strips.columns - strip * STRIP;
    let mut few = [0.0; STRIP];
    let to = if columns >= STRIP { y } else { few.as_mut_ptr() };
    unsafe {
        _mm256_storeu_ps(to, sums[0]);
        _mm256_storeu_ps(to.add(8), sums[1]);
        if columns < STRIP {
            std::ptr::copy_nonoverlapping(few.as_ptr(), y, columns);
        }
    }
}

/// Six rows by sixteen columns: `sums[r] += x[k][r] · weights[k]`, k ascending.
#[rustfmt::skip]
#[target_feature(enable = "avx2,fma")]
unsafe fn accumulate(sums: &mut [[f32; STRIP]; ROWS], depth: usize, x: *const f32, weights: *const f32) {
    /// All exceptions masked, round to nearest, flush to zero, denormals are zero.
    const FLUSH: u32 = 0x9fc0;
    let mut saved = 0u32;
    unsafe {
        asm!(
            "stmxcsr [{saved}]",
            "ldmxcsr [{flush}]",
            "vmovups ymm0, [{sums}]",        "vmovups ymm1, [{sums} + 32]",
            "vmovups ymm2, [{sums} + 64]",   "vmovups ymm3, [{sums} + 96]",
            "vmovups ymm4, [{sums} + 128]",  "vmovups ymm5, [{sums} + 160]",
            "vmovups ymm6, [{sums} + 192]",  "vmovups ymm7, [{sums} + 224]",
            "vmovups ymm8, [{sums} + 256]",  "vmovups ymm9, [{sums} + 288]",
            "vmovups ymm10, [{sums} + 320]", "vmovups ymm11, [{sums} + 352]",
            "2:",
            "vmovups ymm12, [{w}]",
            "vmovups ymm13, [{w} + 32]",
            "vbroadcastss ymm14, [{x}]",
            "vbroadcastss ymm15, [{x} + 4]",
            // x must stay the first factor: of two NaN the first one is kept.
            "vfmadd231ps ymm0, ymm14, ymm12",  "vfmadd231ps ymm1, ymm14, ymm13",
            "vfmadd231ps ymm2, ymm15, ymm12",  "vfmadd231ps ymm3, ymm15, ymm13",
            "vbroadcastss ymm14, [{x} + 8]",
            "vbroadcastss ymm15, [{x} + 12]",
            "vfmadd231ps ymm4, ymm14, ymm12",  "vfmadd231ps ymm5, ymm14, ymm13",
            "vfmadd231ps ymm6, ymm15, ymm12",  "vfmadd231ps ymm7, ymm15, ymm13",
            "vbroadcastss ymm14, [{x} + 16]",
            "vbroadcastss ymm15, [{x} + 20]",
            "vfmadd231ps ymm8, ymm14, ymm12",  "vfmadd231ps ymm9, ymm14, ymm13",
            "vfmadd231ps ymm10, ymm15, ymm12", "vfmadd231ps ymm11, ymm15, ymm13",
            "add {x}, 24",
            "add {w}, 64",
            "dec {depth}",
            "jnz 2b",
            "vmovups [{sums}], ymm0",        "vmovups [{sums} + 32], ymm1",
            "vmovups [{sums} + 64], ymm2",   "vmovups [{sums} + 96], ymm3",
            "vmovups [{sums} + 128], ymm4",  "vmovups [{sums} + 160], ymm5",
            "vmovups [{sums} + 192], ymm6",  "vmovups [{sums} + 224], ymm7",
            "vmovups [{sums} + 256], ymm8",  "vmovups [{sums} + 288], ymm9",
            "vmovups [{sums} + 320], ymm10", "vmovups [{sums} + 352], ymm11",
            "ldmxcsr [{saved}]",
            saved = in(reg) &mut saved,
            flush = in(reg) &FLUSH,
            sums = in(reg) sums,
            depth = inout(reg) depth => _,
            x = inout(reg) x => _,
            w = inout(reg) weights => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
}

/// Writes up to sixteen lines as columns: number k of line j goes to `to[(k ^ SWAP) · width + j]`, up
/// to an even number of rows if `SWAP` is 1. Lanes up to `lanes` without a line become zero, and so
/// may up to seven numbers behind each row: rows are written in ascending order, and there is room
/// behind the last.
#[target_feature(enable = "avx2,fma")]
unsafe fn transpose<const SWAP: usize>(
    to: *mut f32,
    width: usize,
    lanes: usize,
    lines: &[*const f32],
    len: usize,
    ahead: usize,
) {
    let whole = len / 8 * 8;
    for at in (0..whole).step_by(8) {
        for group in (0..lanes).step_by(8) {
            let rows = std::array::from_fn(|j| match lines.get(group + j) {
                Some(line) => unsafe {
                    if ahead > 0 {
                        _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(at + ahead).cast());
                    }
                    _mm256_loadu_ps(line.add(at))
                },
                None => _mm256_setzero_ps(),
            });
            let columns = transposed(rows);
            for i in 0..8 {
                unsafe { _mm256_storeu_ps(to.add((at + i) * width + group), columns[i ^ SWAP]) };
            }
        }
    }
    let padded = if SWAP == 1 { len.next_multiple_of(2) } else { len };
    for k in whole..padded {
        for lane in 0..lanes {
            let from = k ^ SWAP;
            let value = match lines.get(lane) {
                Some(line) if from < len => unsafe { *line.add(from) },
                _ => 0.0,
            };
            unsafe { *to.add(k * width + lane) = value };
        }
    }
}

/// Eight by eight numbers, rows and columns exchanged.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transposed(rows: [__m256; 8]) -> [__m256; 8] {
    let pairs: [__m256; 8] = std::array::from_fn(|i| match i % 2 {
        0 => _mm256_unpacklo_ps(rows[i], rows[i + 1]),
        _ => _mm256_unpackhi_ps(rows[i - 1], rows[i]),
    });
    // fours[4 i + c] holds columns c and c + 4 of the rows from 4 i on.
    let fours: [__m256; 8] = std::array::from_fn(|i| {
        let (first, second) = (pairs[i / 4 * 4 + i / 2 % 2], pairs[i / 4 * 4 + i / 2 % 2 + 2]);
        if i % 2 == 0 { _mm256_shuffle_ps::<0x44>(first, second) } else { _mm256_shuffle_ps::<0xee>(first, second) }
    });
    std::array::from_fn(|i| {
        let (above, below) = (fours[i % 4], fours[i % 4 + 4]);
        if i < 4 { _mm256_permute2f128_ps::<0x20>(above, below) } else { _mm256_permute2f128_ps::<0x31>(above, below) }
    })
}

/// Writes a row of weights, sixteen columns to each strip.
#[target_feature(enable = "avx2,fma")]
unsafe fn copy_row(to: *mut f32, strip_words: usize, line: *const f32, columns: usize) {
    for strip in 0..columns.div_ceil(STRIP) {
        let (column, to) = (strip * STRIP, unsafe { to.add(strip * strip_words) });
        if column + STRIP <= columns {
            for half in 0..2 {
                unsafe { _mm256_storeu_ps(to.add(8 * half), _mm256_loadu_ps(line.add(column + 8 * half))) };
            }
        } else {
            for lane in 0..STRIP {
                let value = if column + lane < columns { unsafe { *line.add(column + lane) } } else { 0.0 };
                unsafe { *to.add(lane) = value };
            }
        }
    }
}
