//! Products in int8 for predicting: `y = start + x Wᵀ`, with sums of whole numbers, which are exact in any order.
//!
//! W has a scale for each output, x a scale and a zero for each row: `w ≈ s · q` with q from −127 to 127, and
//! `x ≈ s · (q − zero)` with q from 0 to 255. Columns of x in which numbers are large would spoil a row's scale.
//! Outliers (Dettmers et al., 2022, "LLM.int8()") are left out and multiplied in bf16; of the others, a part of their
//! reach is moved into W (Xiao et al., 2023, "SmoothQuant"; by the reach of x alone, as the matrices that share x must
//! agree on it). All this is fixed beforehand by what was observed, so that a row's outputs do not depend on the rows
//! beside it.
//!
//! `VPDPBUSD` multiplies numbers without a sign by numbers with one: `zero · Σ w` is taken off the sum. The path without
//! it splits bytes into even and odd ones and gives the same sums.

#![expect(unsafe_code, reason = "packed words are reached by raw pointers")]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::kernel::{Shared, Words};
use super::packed::Packed;
use super::panels::{Packing, Start};
use super::path::{Compute, Path};
use super::tasks::pack;
use super::views::MatrixMut;
use super::vnni::{self, ROWS, STRIP};
use super::weights::{Direction, Source, Weights};
use crate::kernels::cpu::math::simd;

/// The largest whole number of weights, on either side.
const LARGEST: f32 = 127.0;
/// The largest whole number of x.
const LAST: f32 = 255.0;
/// Magnitude from which on a column of x counts as an outlier.
const OUTLIER: f32 = 6.0;
/// The power of a column's reach that moves into W.
const SMOOTHING: f32 = 0.5;
/// A column's reach counts as at least this part of the largest: what was never seen may still come.
const LEAST_REACH: f32 = 1.0 / 64.0;
/// A row whose largest number is smaller counts as zero.
const LEAST: f32 = 1e-30;

/// A matrix `(outputs, depth)` in int8.
pub(crate) struct Int8 {
    /// For each strip, for each four terms, a word of four numbers for each column.
    strips: Words,
    /// Σ w of each output.
    totals: Vec<i32>,
    scales: Vec<f32>,
    outputs: usize,
    columns: Arc<Columns>,
    /// The weights for outliers, packed, and row by row.
    apart: Option<(Packed, Vec<bf16>)>,
}

/// What happens to each column of x before a row is rounded.
#[derive(PartialEq)]
struct Columns {
    /// The factor of each column; 0 for outliers, which are left out of the rounding.
    factors: Vec<f32>,
    /// Columns that are multiplied in bf16, ascending.
    outliers: Vec<usize>,
}

/// Rows of x in int8.
pub(crate) struct Int8Rows {
    /// For each four terms, a word for each row of a group of [`ROWS`].
    words: Words,
    rows: usize,
    scales: Vec<Scale>,
    columns: Arc<Columns>,
    apart: Option<Packing>,
}

/// Scale of a row of x: the whole number q stands for `step · (q − zero)`.
#[derive(Clone, Copy, Default)]
struct Scale {
    step: f32,
    zero: i32,
}

impl Columns {
    /// From the largest magnitude that each column is known to have.
    fn new(maxima: &[f32]) -> Self {
        let outliers: Vec<usize> = (0..maxima.len()).filter(|&column| maxima[column] >= OUTLIER).collect();
        let most = maxima.iter().copied().filter(|&reach| reach < OUTLIER).fold(0.0, f32::max);
        let factor = |&reach: &f32| match reach {
            reach if reach >= OUTLIER => 0.0,
            _ if most == 0.0 => 1.0,
            reach => (most / reach.max(LEAST_REACH * most)).powf(SMOOTHING),
        };
        Self { factors: maxima.iter().map(factor).collect(), outliers }
    }
}

impl Int8 {
    /// Quantizes a matrix on all threads. `maxima` are the largest magnitudes of the columns of x.
    pub(crate) fn new(weights: &Weights<'_>, maxima: &[f32]) -> Self {
        assert!(weights.direction == Direction::Forward, "only products with x are computed in int8");
        assert_eq!(maxima.len(), weights.columns, "a magnitude for each column");
        let columns = Arc::new(Columns::new(maxima));
        let (outputs, depth) = (weights.rows, weights.columns);
        let strip_words = depth.div_ceil(4) * STRIP;
        let mut strips = Words::NONE;
        let words = strips.of(outputs.div_ceil(STRIP) * strip_words);
        words.fill(0);
        let made: Vec<Vec<(i32, f32)>> = words
            .par_chunks_mut(strip_words)
            .enumerate()
            .map(|(strip, words)| {
                let rows = strip * STRIP..((strip + 1) * STRIP).min(outputs);
                let mut line = vec![0.0; depth];
                rows.clone().map(|row| quantize_line(weights, row, &columns.factors, &mut line, words)).collect()
            })
            .collect();
        let (totals, scales) = made.into_iter().flatten().unzip();
        let apart = apart(weights, &columns.outliers);
        Self { strips, totals, scales, outputs, columns, apart }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.strips.bytes() + 8 * self.outputs + 4 * self.depth() + self.apart_bytes()
    }

    fn apart_bytes(&self) -> usize {
        self.apart.as_ref().map_or(0, |(packed, weights)| packed.bytes() + 2 * weights.len())
    }

    /// The numbers that it stands for, row by row.
    pub(crate) fn values(&self) -> Vec<bf16> {
        let (depth, units) = (self.depth(), self.depth().div_ceil(4));
        let mut values = vec![bf16::ZERO; self.outputs * depth];
        for (row, (values, scale)) in values.chunks_exact_mut(depth).zip(&self.scales).enumerate() {
            let strip = unsafe {
                std::slice::from_raw_parts(self.strips.as_ptr().add(row / STRIP * units * STRIP), units * STRIP)
            };
            for (k, (value, factor)) in values.iter_mut().zip(&self.columns.factors).enumerate() {
                let number = strip[k / 4 * STRIP + row % STRIP].to_le_bytes()[k % 4] as i8;
                *value = bf16::from_f32(scale * factor * f32::from(number));
            }
            if let Some((_, weights)) = &self.apart {
                let outliers = &self.columns.outliers;
                let weights = &weights[row * outliers.len()..];
                outliers.iter().zip(weights).for_each(|(&column, weight)| values[column] = *weight);
            }
        }
        values
    }

    /// Whether rows that were quantized for one of the two can be multiplied by the other.
    pub(crate) fn shares_rows_with(&self, other: &Self) -> bool {
        self.columns == other.columns
    }

    fn depth(&self) -> usize {
        self.columns.factors.len()
    }

    /// Quantizes rows of x for products with this matrix; `also` hears of rows as soon as they were read.
    pub(crate) fn quantize(&self, x: &[f32], also: &(dyn Fn(Range<usize>) + Sync)) -> Int8Rows {
        let (depth, rows) = (self.depth(), x.len() / self.depth());
        assert_eq!(x.len(), rows * depth, "rows of {depth} numbers");
        let group_words = depth.div_ceil(4) * ROWS;
        let mut words = Words::NONE;
        let mut scales = vec![Scale::default(); rows];
        let work = |(group, (words, scales)): (usize, (&mut [u32], &mut [Scale]))| {
            let range = group * ROWS..group * ROWS + scales.len();
            let mut line = vec![0u8; depth.next_multiple_of(4)];
            for ((lane, row), scale) in range.clone().enumerate().zip(scales) {
                *scale = quantize_row(&x[row * depth..][..depth], &self.columns.factors, &mut line);
                for (unit, four) in line.as_chunks::<4>().0.iter().enumerate() {
                    words[unit * ROWS + lane] = u32::from_le_bytes(*four);
                }
            }
            also(range);
        };
        let groups = words.of(rows.div_ceil(ROWS) * group_words).chunks_mut(group_words).zip(scales.chunks_mut(ROWS));
        let groups: Vec<_> = groups.enumerate().collect();
        if groups.len() >= 8 {
            groups.into_par_iter().for_each(work)
        } else {
            groups.into_iter().for_each(work)
        }
        let outliers = &self.columns.outliers;
        let apart = (!outliers.is_empty()).then(|| {
            let picked: Vec<f32> =
                x.chunks_exact(depth).flat_map(|row| outliers.iter().map(|&column| row[column])).collect();
            pack(Compute::Bfloat16, &picked, outliers.len(), &|_| {})
        });
        Int8Rows { words, rows, scales, columns: Arc::clone(&self.columns), apart }
    }

    /// `y = start + x Wᵀ`, on all threads.
    pub(crate) fn product(&self, x: &Int8Rows, mut y: MatrixMut<'_>, start: Start<'_>) {
        static NOTHING: [f32; STRIP] = [0.0; STRIP];
        assert!(x.columns == self.columns, "x was quantized for another matrix");
        assert!(y.shape() == (x.rows, self.outputs), "the output of {} rows is {:?}", x.rows, y.shape());
        start.check(x.rows, self.outputs);
        let (data, stride) = y.raw();
        let ([bias, residual], start) = match start {
            Start::Given { bias, residual } => ([bias, residual], Start::Zero),
            _ => ([&[][..]; 2], start),
        };
        let start = match (&self.apart, &x.apart) {
            (Some((weights, _)), Some(x)) => {
                // SAFETY: the same matrix, which nobody else looks at meanwhile.
                weights.product(x, unsafe { MatrixMut::from_raw(data, x.rows(), self.outputs, stride) }, start);
                Start::Sum
            }
            _ => start,
        };
        let adds = !matches!(start, Start::Zero);
        let (path, y) = (Path::of_this_cpu(Compute::Float32), Shared(data));
        let threads = rayon::current_num_threads();
        let strips = self.outputs.div_ceil(STRIP);
        let tasks = self.outputs.div_ceil(256).next_multiple_of(threads).min(strips);
        (0..tasks).into_par_iter().with_max_len(1).for_each(|task| {
            let strips = task * strips / tasks..(task + 1) * strips / tasks;
            for group in 0..x.rows.div_ceil(ROWS) {
                let rows = group * ROWS..((group + 1) * ROWS).min(x.rows);
                let columns = strips.start * STRIP..(strips.end * STRIP).min(self.outputs);
                // SAFETY: tasks have columns of their own, inside y.
                let mut block = unsafe {
                    let first = y.get().add(rows.start * stride + columns.start);
                    MatrixMut::from_raw(first, rows.len(), columns.len(), stride)
                };
                if let Start::Written(write) = start {
                    write(rows.start, columns.start, block.block(0, rows.len(), 0, columns.len()));
                }
                let first = columns.start;
                let words = unsafe { x.words.as_ptr().add(group * self.depth().div_ceil(4) * ROWS) };
                for strip in strips.clone() {
                    let columns = strip * STRIP..((strip + 1) * STRIP).min(self.outputs);
                    let mut block = block.block(0, rows.len(), columns.start - first, columns.len());
                    let residual = match residual {
                        [] => (&NOTHING[..], 0),
                        _ => (&residual[rows.start * self.outputs + columns.start..], self.outputs),
                    };
                    fetch(&mut block, residual);
                    let mut sums = [[0i32; STRIP]; ROWS];
                    // SAFETY: a group and a strip, as they were packed.
                    unsafe {
                        let units = self.depth().div_ceil(4);
                        vnni::multiply(path, units, words, self.strips.as_ptr().add(strip * units * STRIP), &mut sums);
                    }
                    let numbers = Numbers {
                        totals: &self.totals[columns.clone()],
                        scales: &self.scales[columns.clone()],
                        bias: bias.get(columns.clone()).unwrap_or(&NOTHING[..columns.len()]),
                    };
                    scale_sums(&mut block, &sums, &x.scales[rows.clone()], &numbers, residual, adds);
                }
            }
        });
    }
}

/// Asks for what will be read and written once the sums are there.
fn fetch(y: &mut MatrixMut<'_>, (residual, stride): (&[f32], usize)) {
    #[cfg(target_arch = "x86_64")]
    for row in 0..y.shape().0 {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        let y = y.row(row).as_ptr();
        for column in [0, STRIP / 2] {
            let residual = residual.as_ptr().wrapping_add(row * stride + column);
            // SAFETY: every x86-64 CPU has it, and it neither reads nor writes.
            unsafe {
                _mm_prefetch::<_MM_HINT_ET0>(y.wrapping_add(column).cast());
                _mm_prefetch::<_MM_HINT_T0>(residual.cast());
            }
        }
    }
}

/// What belongs to the columns of a strip.
struct Numbers<'a> {
    totals: &'a [i32],
    scales: &'a [f32],
    bias: &'a [f32],
}

impl Int8Rows {
    /// How many there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }
}

impl fmt::Debug for Int8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Int8({} × {}, {} outliers)", self.outputs, self.depth(), self.columns.outliers.len())
    }
}

/// Writes a row of weights into its strip; gives Σ w, and the scale.
fn quantize_line(
    weights: &Weights<'_>,
    row: usize,
    factors: &[f32],
    line: &mut [f32],
    words: &mut [u32],
) -> (i32, f32) {
    weights.source.read(row * weights.stride, line);
    for (w, &factor) in line.iter_mut().zip(factors) {
        *w = if factor == 0.0 { 0.0 } else { *w / factor };
    }
    let largest = line.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
    let (scale, inverse) = scales(largest, LARGEST, line.iter().all(|w| w.is_finite()));
    let mut sum = 0;
    for (k, &w) in line.iter().enumerate() {
        let number = (w * inverse).round_ties_even().clamp(-LARGEST, LARGEST) as i32;
        sum += number;
        words[k / 4 * STRIP + row % STRIP] |= u32::from(number as i8 as u8) << (8 * (k % 4));
    }
    (sum, scale)
}

/// The step between whole numbers if `steps` of them cover `reach`, and its inverse. If a number is not finite, the step
/// is NaN, and so is every product.
fn scales(reach: f32, steps: f32, is_finite: bool) -> (f32, f32) {
    match reach {
        _ if !is_finite => (f32::NAN, 0.0),
        reach if reach < LEAST => (0.0, 0.0),
        reach => (reach / steps, steps / reach),
    }
}

/// The weights of outliers, packed, and row by row.
fn apart(weights: &Weights<'_>, outliers: &[usize]) -> Option<(Packed, Vec<bf16>)> {
    if outliers.is_empty() {
        return None;
    }
    let (rows, columns) = (weights.rows, outliers.len());
    let mut line = vec![0.0; weights.columns];
    let mut picked = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        weights.source.read(row * weights.stride, &mut line);
        picked.extend(outliers.iter().map(|&column| bf16::from_f32(line[column])));
    }
    let source = Source::Bf16(&picked);
    let weights = Weights { source, rows, columns, stride: columns, direction: Direction::Forward };
    Some((Packed::new(Compute::Bfloat16, &weights), picked))
}

simd! {
    /// The least and the largest number, at most and at least 0, and whether all are finite.
    fn extent(x: &[f32], factors: &[f32]) -> (f32, f32, bool) {
        const LANES: usize = 16;
        let (mut least, mut most, mut sums) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
        let (chunks, rest) = x.as_chunks::<LANES>();
        let (of_chunks, of_rest) = factors.as_chunks::<LANES>();
        for (chunk, factors) in chunks.iter().zip(of_chunks) {
            for lane in 0..LANES {
                let x = chunk[lane] * factors[lane];
                least[lane] = if x < least[lane] { x } else { least[lane] };
                most[lane] = if x > most[lane] { x } else { most[lane] };
                // Stays zero unless a number is infinite or NaN.
                sums[lane] += x * 0.0;
            }
        }
        let mut sum: f32 = sums.iter().sum();
        let mut low = least.iter().fold(0.0f32, |low, &x| low.min(x));
        let mut high = most.iter().fold(0.0f32, |high, &x| high.max(x));
        for (x, factor) in rest.iter().zip(of_rest) {
            let x = x * factor;
            low = low.min(x);
            high = high.max(x);
            sum += x * 0.0;
        }
        (low, high, sum == 0.0)
    }
}

simd! {
    /// Rounds a row of x to whole numbers from 0 to 255, and returns their scale. Outliers count as 0.
    fn quantize_row(x: &[f32], factors: &[f32], line: &mut [u8]) -> Scale {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
        let (low, high, is_finite) = extent(x, factors);
        let (step, inverse) = scales(high - low, LAST, is_finite);
        let zero = if is_finite { (-low * inverse).round_ties_even() } else { 0.0 };
        let (first, last) = (-zero, LAST - zero);
        let zero = zero as i32;
        for ((line, x), factor) in line.iter_mut().zip(x).zip(factors) {
            let number = (x * factor * inverse).max(first).min(last) + ROUND;
            *line = (number.to_bits() as u8).wrapping_add(zero as u8);
        }
        Scale { step, zero }
    }
}

simd! {
    /// A block of y: `s · step · (Σ x w − zero · Σ w)` and the bias and the residual, of which rows are that far apart, and
    /// what is in y if that `adds`.
    fn scale_sums(
        y: &mut MatrixMut<'_>,
        sums: &[[i32; STRIP]; ROWS],
        rows: &[Scale],
        numbers: &Numbers<'_>,
        residual: (&[f32], usize),
        adds: bool,
    ) {
        for (index, (scale, sums)) in rows.iter().zip(sums).enumerate() {
            let y = y.row(index);
            let columns = numbers.totals.iter().zip(numbers.scales).zip(numbers.bias);
            let columns = columns.zip(&residual.0[index * residual.1..]);
            let values = sums.iter().zip(columns).map(|(sum, (((total, of_column), bias), residual))| {
                (sum - scale.zero * total) as f32 * (scale.step * of_column) + bias + residual
            });
            if adds {
                y.iter_mut().zip(values).for_each(|(y, value)| *y += value);
            } else {
                y.iter_mut().zip(values).for_each(|(y, value)| *y = value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|at| ((at * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Within what rounding both factors to 8 bits may cost; outliers only within what bf16 may.
    #[test]
    fn products_in_int8_are_near_those_in_f32_and_outliers_nearer() {
        for (rows, outputs, depth, outliers) in [(1, 7, 5, &[][..]), (30, 70, 131, &[3, 77, 130]), (13, 33, 64, &[0])] {
            let (mut x, w) = (numbers(rows * depth, 1), numbers(outputs * depth, 2));
            let mut maxima = vec![1.0; depth];
            outliers.iter().for_each(|&column: &usize| maxima[column] = 100.0);
            // Small columns, of which the rounding is finer than of the others.
            (0..depth).step_by(3).filter(|column| !outliers.contains(column)).for_each(|column| maxima[column] = 0.1);
            for row in x.chunks_exact_mut(depth) {
                row.iter_mut().zip(&maxima).for_each(|(x, reach)| *x *= reach);
            }
            let weights = Weights {
                source: Source::F32(&w),
                rows: outputs,
                columns: depth,
                stride: depth,
                direction: Direction::Forward,
            };
            let int8 = Int8::new(&weights, &maxima);
            let before = numbers(rows * outputs, 3);
            let (bias, residual) = (numbers(outputs, 4), numbers(rows * outputs, 5));
            for start in [Start::Zero, Start::Sum, Start::given(Some(&bias), Some(&residual))] {
                let mut y = before.clone();
                let quantized = int8.quantize(&x, &|_| {});
                int8.product(&quantized, MatrixMut::new(&mut y, rows, outputs, outputs), start);
                for (at, y) in y.iter().enumerate() {
                    let terms = x[at / outputs * depth..][..depth].iter().zip(&w[at % outputs * depth..]);
                    let mut expected: f64 = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    expected += match start {
                        Start::Zero => 0.0,
                        Start::Given { .. } => f64::from(bias[at % outputs] + residual[at]),
                        _ => f64::from(before[at]),
                    };
                    // Half a step of each factor, times the root of the number of terms, five deviations; and bf16.
                    let bound = 5.0 * (depth as f64).sqrt() / 127.0 + 1.5 * outliers.len() as f64;
                    assert!((f64::from(*y) - expected).abs() < bound, "{rows}×{outputs}×{depth}: {y} for {expected}");
                }
            }
            // What it stands for is near, by half a step of the largest number in a row.
            for (value, w) in int8.values().iter().zip(&w) {
                assert!((value.to_f32() - w).abs() < 0.02, "{value} for {w}");
            }
            // A row alone has the outputs that it has among others.
            let mut alone = vec![0.0; outputs];
            let last = int8.quantize(&x[(rows - 1) * depth..], &|_| {});
            int8.product(&last, MatrixMut::new(&mut alone, 1, outputs, outputs), Start::Zero);
            let mut all = vec![0.0; rows * outputs];
            let quantized = int8.quantize(&x, &|_| {});
            int8.product(&quantized, MatrixMut::new(&mut all, rows, outputs, outputs), Start::Zero);
            assert_eq!(alone, all[(rows - 1) * outputs..]);
        }
    }

    #[test]
    fn a_number_that_is_not_finite_spoils_its_row_and_no_other() {
        let w = numbers(9 * 20, 2);
        let weights =
            Weights { source: Source::F32(&w), rows: 9, columns: 20, stride: 20, direction: Direction::Forward };
        let mut maxima = [1.0; 20];
        maxima[4] = 10.0;
        let int8 = Int8::new(&weights, &maxima);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = numbers(3 * 20, 1);
            x[20 + 7] = bad;
            let mut y = vec![0.0; 27];
            let quantized = int8.quantize(&x, &|_| {});
            int8.product(&quantized, MatrixMut::new(&mut y, 3, 9, 9), Start::Zero);
            assert!(y[9..18].iter().all(|y| !y.is_finite()));
            assert!(y[..9].iter().chain(&y[18..]).all(|y| y.is_finite()));
        }
    }
}
