//! Micro-kernels and packing for AVX-512: f32, and bf16 with AVX512_BF16.
//!
//! Both work on 32-bit words: an f32, or two bf16 that are neighbours along k. A micro-tile is up to
//! 14 rows of x by 32 columns of y: 28 registers of sums, two of weights, one of x, broadcast. Few
//! rows take several strips at once, so that there are still enough independent chains.

#![expect(unsafe_code, reason = "vector loads and stores take raw pointers")]

use std::arch::x86_64::*;

use super::kernel::{Kernel, Strips};
use super::weights::Source;

/// Rows of x in a micro-tile at most.
const ROWS: usize = 14;
/// Columns of y in a strip.
const STRIP: usize = 32;

/// f32 with AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Float32;

/// bf16 with AVX512_BF16.
#[derive(Clone, Copy)]
pub(super) struct Bfloat16;

impl Kernel for Float32 {
    type Number = f32;
    const ROWS: usize = ROWS;
    const STRIP: usize = STRIP;
    const TERMS: usize = 1;
    const WORDS: usize = 1;
    const READS_STRIDED: bool = true;
    const READS_ROWS: bool = true;

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
        unsafe { transpose(to, width, lanes, lines, 4 * len, 4 * ahead) }
    }

    unsafe fn interleave(to: *mut u32, strip_words: usize, lines: [*const f32; 2], columns: usize) {
        unsafe { copy_row(to, strip_words, lines[0], columns) }
    }

    unsafe fn copy_columns(to: *mut u32, lanes: usize, from: *const f32, stride: usize, len: usize, scale: f32) {
        unsafe { copy_columns(to, lanes, from, stride, len, scale) }
    }

    unsafe fn panel(rows: usize, units: usize, x: *const u32, strips: &Strips) {
        unsafe { by_rows!(float32::panel, rows, (units, (x, 0), strips)) }
    }

    unsafe fn panel_of_rows(rows: usize, units: usize, x: *const f32, stride: usize, strips: &Strips) {
        unsafe { by_rows!(float32::panel_of_rows, rows, (units, (x.cast(), stride), strips)) }
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
        source.read_rounded(first, to, Self::narrow);
    }

    fn narrow(to: &mut [u16], from: &[f32]) {
        assert_eq!(to.len(), from.len());
        // SAFETY: this kernel is chosen only where the CPU has AVX512_BF16; the lengths are equal.
        unsafe { round(to.as_mut_ptr(), from.as_ptr(), to.len()) }
    }

    unsafe fn transpose(to: *mut u32, width: usize, lanes: usize, lines: &[*const u16], len: usize, ahead: usize) {
        unsafe { transpose(to, width, lanes, lines, 2 * len, 2 * ahead) }
    }

    unsafe fn interleave(to: *mut u32, strip_words: usize, lines: [*const u16; 2], columns: usize) {
        unsafe { pair_rows(to, strip_words, lines, columns) }
    }

    unsafe fn panel(rows: usize, units: usize, x: *const u32, strips: &Strips) {
        unsafe { by_rows!(bfloat16::panel, rows, (units, (x, 0), strips)) }
    }
}

/// The first word of x, and from a row to the next where they are not packed.
type Rows = (*const u32, usize);

/// Calls the function made for this number of rows, with as many strips at once as suit it.
macro_rules! by_rows {
    ($module:ident :: $function:ident, $rows:expr, $arguments:tt) => {
        match $rows {
            1 => $module::$function::<1, 8> $arguments,
            2 => $module::$function::<2, 4> $arguments,
            3 => $module::$function::<3, 2> $arguments,
            4 => $module::$function::<4, 2> $arguments,
            5 => $module::$function::<5, 2> $arguments,
            6 => $module::$function::<6, 2> $arguments,
            7 => $module::$function::<7, 1> $arguments,
            8 => $module::$function::<8, 1> $arguments,
            9 => $module::$function::<9, 1> $arguments,
            10 => $module::$function::<10, 1> $arguments,
            11 => $module::$function::<11, 1> $arguments,
            12 => $module::$function::<12, 1> $arguments,
            13 => $module::$function::<13, 1> $arguments,
            14 => $module::$function::<14, 1> $arguments,
            rows => unreachable!("{rows} rows in a panel"),
        }
    };
}
use by_rows;

/// The micro-kernels of one kind of number: `$multiply_add` adds the product of a broadcast word of x
/// and sixteen words of weights to sixteen sums.
macro_rules! micro_kernels {
    ($module:ident, $features:literal, $multiply_add:expr $(, $rows:item)?) => {
        mod $module {
            use super::*;
$(
            $rows
)?

            /// A packed panel of R rows times every strip, S at a time.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn panel<const R: usize, const S: usize>(units: usize, x: Rows, strips: &Strips) {
                unsafe { by_strips::<R, S, true>(units, x, strips) }
            }

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn by_strips<const R: usize, const S: usize, const PACKED: bool>(
                units: usize,
                x: Rows,
                strips: &Strips,
            ) {
                let mut strip = 0;
                while strip + S <= strips.count() {
                    unsafe { tile::<R, S, PACKED>(units, x, strips, strip) };
                    strip += S;
                }
                while strip < strips.count() {
                    unsafe { tile::<R, 1, PACKED>(units, x, strips, strip) };
                    strip += 1;
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile<const R: usize, const S: usize, const PACKED: bool>(
                units: usize,
                (x, stride): Rows,
                strips: &Strips,
                strip: usize,
            ) {
                let multiply_add = $multiply_add;
                prefetch_next::<R, S>(strips, strip);
                let mut sums = [[[_mm512_setzero_ps(); 2]; S]; R];
                if strips.add {
                    for r in 0..R {
                        for s in 0..S {
                            for half in 0..2 {
                                let (y, mask) = lanes(strips, r, strip + s, half);
                                sums[r][s][half] = unsafe { _mm512_maskz_loadu_ps(mask, y) };
                            }
                        }
                    }
                }
                let (mut x, mut weights) = (x, unsafe { strips.weights.add(strip * strips.strip_words) });
                for _ in 0..units {
                    let w: [[__m512i; 2]; S] = std::array::from_fn(|s| unsafe {
                        let w = weights.add(s * strips.strip_words);
                        [_mm512_loadu_si512(w.cast()), _mm512_loadu_si512(w.add(16).cast())]
                    });
                    for r in 0..R {
                        let x = _mm512_set1_epi32(unsafe { *x.add(if PACKED { r } else { r * stride }) } as i32);
                        for s in 0..S {
                            for half in 0..2 {
                                sums[r][s][half] = multiply_add(sums[r][s][half], x, w[s][half]);
                            }
                        }
                    }
                    x = unsafe { x.add(if PACKED { R } else { 1 }) };
                    weights = weights.wrapping_add(strips.unit_words);
                }
                for r in 0..R {
                    for s in 0..S {
                        for half in 0..2 {
                            let (y, mask) = lanes(strips, r, strip + s, half);
                            unsafe { _mm512_mask_storeu_ps(y, mask, sums[r][s][half]) };
                        }
                    }
                }
            }
        }
    };
}

micro_kernels!(
    float32,
    "avx512f,avx512bw",
    |sum, x: __m512i, w: __m512i| _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sum),
    /// The same for rows where they lie.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn panel_of_rows<const R: usize, const S: usize>(units: usize, x: Rows, strips: &Strips) {
        unsafe { by_strips::<R, S, false>(units, x, strips) }
    }
);

micro_kernels!(bfloat16, "avx512f,avx512bw,avx512bf16", |sum, x: __m512i, w: __m512i| unsafe {
    // SAFETY: the same 512 bits.
    _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(w))
});

/// Where sixteen columns of row `r` start, and which of them exist.
#[inline(always)]
fn lanes(strips: &Strips, r: usize, strip: usize, half: usize) -> (*mut f32, __mmask16) {
    let column = STRIP * strip + 16 * half;
    let lanes = strips.columns.saturating_sub(column).min(16);
    (strips.y.wrapping_add(r * strips.y_stride + column), ((1u32 << lanes) - 1) as u16)
}

/// Asks for the sums that the next tile starts with, or for those of the next panel's first.
#[inline(always)]
fn prefetch_next<const R: usize, const S: usize>(strips: &Strips, strip: usize) {
    let next = strip + S;
    let (row, next) = if next < strips.count() { (0, next) } else { (R, 0) };
    for r in 0..R {
        for half in 0..2 * S {
            let y = strips.y.wrapping_add((row + r) * strips.y_stride + STRIP * next + 16 * half);
            // SAFETY: every x86-64 CPU has it, and it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(y.cast()) };
        }
    }
}

/// Rounds f32 to bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn round(to: *mut u16, from: *const f32, len: usize) {
    let mut at = 0;
    while at < len {
        let lanes = (len - at).min(16);
        let mask = ((1u32 << lanes) - 1) as u16;
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from.add(at)));
            _mm256_mask_storeu_epi16(to.add(at).cast(), mask, std::mem::transmute::<__m256bh, __m256i>(rounded));
        }
        at += lanes;
    }
}

/// Writes `lines` (at most sixteen, `bytes` long) as columns of words: word i of line j goes to
/// `to[i · width + j]`. Lanes up to `lanes` without a line become zero. What stands `ahead` bytes
/// behind the numbers read is fetched into the cache: so many short runs are no stream that the CPU
/// sees coming.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn transpose<T>(to: *mut u32, width: usize, lanes: usize, lines: &[*const T], bytes: usize, ahead: usize) {
    let words = bytes.div_ceil(4);
    let mut at = 0;
    if let Ok(lines) = <&[*const T; 16]>::try_from(lines)
        && lanes == 16
    {
        while at + 16 <= bytes / 4 {
            let rows = std::array::from_fn(|j| unsafe {
                let line = lines[j].cast::<i8>().add(4 * at);
                if ahead > 0 {
                    _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(ahead));
                }
                _mm512_loadu_si512(line.cast())
            });
            let to = unsafe { to.add(at * width) };
            for (i, column) in transposed(rows).into_iter().enumerate() {
                unsafe { _mm512_storeu_si512(to.add(i * width).cast(), column) };
            }
            at += 16;
        }
    }
    let mask = ((1u32 << lanes) - 1) as u16;
    while at < words {
        let load = u64::MAX >> (64 - (bytes - 4 * at).min(64));
        let rows = std::array::from_fn(|j| match lines.get(j) {
            Some(line) => unsafe { _mm512_maskz_loadu_epi8(load, line.cast::<i8>().add(4 * at)) },
            None => _mm512_setzero_si512(),
        });
        for (i, column) in transposed(rows).into_iter().take(words - at).enumerate() {
            unsafe { _mm512_mask_storeu_epi32(to.add((at + i) * width).cast(), mask, column) };
        }
        at += 16;
    }
}

/// Sixteen by sixteen words, rows and columns exchanged.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let pairs: [__m512i; 16] = std::array::from_fn(|i| match i % 2 {
        0 => _mm512_unpacklo_epi32(rows[i], rows[i + 1]),
        _ => _mm512_unpackhi_epi32(rows[i - 1], rows[i]),
    });
    // fours[4 i + c] holds columns c, c + 4, c + 8, c + 12 of the rows from 4 i on.
    let fours: [__m512i; 16] = std::array::from_fn(|i| {
        let (first, second) = (pairs[i / 4 * 4 + i / 2 % 2], pairs[i / 4 * 4 + i / 2 % 2 + 2]);
        if i % 2 == 0 { _mm512_unpacklo_epi64(first, second) } else { _mm512_unpackhi_epi64(first, second) }
    });
    let eights: [__m512i; 16] = std::array::from_fn(|i| {
        let (first, second) = (fours[i / 8 * 8 + i % 4], fours[i / 8 * 8 + i % 4 + 4]);
        if i / 4 % 2 == 0 {
            _mm512_shuffle_i32x4::<0x88>(first, second)
        } else {
            _mm512_shuffle_i32x4::<0xdd>(first, second)
        }
    });
    std::array::from_fn(|i| {
        let (above, below) = (eights[i % 8], eights[i % 8 + 8]);
        if i < 8 { _mm512_shuffle_i32x4::<0x88>(above, below) } else { _mm512_shuffle_i32x4::<0xdd>(above, below) }
    })
}

/// Pairs up two rows of weights, and writes 32 columns to each strip.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pair_rows(to: *mut u32, strip_words: usize, lines: [*const u16; 2], columns: usize) {
    let low: [u16; 32] = std::array::from_fn(|i| (i / 2 + 32 * (i % 2)) as u16);
    let high: [u16; 32] = std::array::from_fn(|i| (i / 2 + 16 + 32 * (i % 2)) as u16);
    let (low, high) = unsafe { (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast())) };
    for strip in 0..columns.div_ceil(STRIP) {
        let column = strip * STRIP;
        let mask = u32::MAX >> (STRIP - (columns - column).min(STRIP));
        unsafe {
            let [first, second] = lines.map(|line| _mm512_maskz_loadu_epi16(mask, line.add(column).cast()));
            let to = to.add(strip * strip_words);
            _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(first, low, second));
            _mm512_storeu_si512(to.add(16).cast(), _mm512_permutex2var_epi16(first, high, second));
        }
    }
}

/// Writes a row of weights, 32 columns to each strip.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn copy_row(to: *mut u32, strip_words: usize, line: *const f32, columns: usize) {
    for strip in 0..columns.div_ceil(STRIP) {
        for half in 0..2 {
            let column = strip * STRIP + 16 * half;
            let lanes = columns.saturating_sub(column).min(16);
            unsafe {
                let values = _mm512_maskz_loadu_ps(((1u32 << lanes) - 1) as u16, line.wrapping_add(column));
                _mm512_storeu_ps(to.add(strip * strip_words + 16 * half).cast(), values);
            }
        }
    }
}

/// Writes `len` rows of `lanes` numbers, `stride` apart, end to end.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn copy_columns(to: *mut u32, lanes: usize, from: *const f32, stride: usize, len: usize, scale: f32) {
    let mask = ((1u32 << lanes) - 1) as u16;
    let scale = _mm512_set1_ps(scale);
    for k in 0..len {
        unsafe {
            let values = _mm512_maskz_loadu_ps(mask, from.add(k * stride));
            _mm512_mask_storeu_ps(to.add(k * lanes).cast(), mask, _mm512_mul_ps(values, scale));
        }
    }
}
