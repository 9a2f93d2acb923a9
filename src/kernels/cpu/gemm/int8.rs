//! Products in int8 for predicting: `y = start + x Wᵀ`, with sums of whole numbers, which are exact in any order.
//!
//! W has a scale for each output, x one for each row: `w ≈ s · q` with q from −127 to 127. Columns of x in
//! which numbers are large (outliers; Dettmers et al., 2022, "LLM.int8()") would spoil a row's scale: they are
//! left out and multiplied in bf16. They are fixed beforehand, so that a row's outputs do not depend on the
//! rows beside it.
//!
//! `VPDPBUSD` multiplies numbers without a sign by numbers with one: so x is stored 128 too large, and
//! 128 · Σ w is taken off the sum. The path without it splits bytes into even and odd ones and gives the same
//! sums.

#![expect(unsafe_code, reason = "packed words are reached by raw pointers")]

use std::fmt;
use std::ops::Range;

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

/// The largest whole number, on either side.
const LARGEST: f32 = 127.0;
/// A row whose largest number is smaller counts as zero.
const LEAST: f32 = 1e-30;

/// A matrix `(outputs, depth)` in int8.
pub(crate) struct Int8 {
    /// For each strip, for each four terms, a word of four numbers for each column.
    strips: Words,
    /// 128 · Σ w of each output.
    offsets: Vec<i32>,
    scales: Vec<f32>,
    outputs: usize,
    depth: usize,
    /// Columns of x that are multiplied in bf16, ascending, and the weights for them.
    outliers: Vec<usize>,
    apart: Option<Packed>,
}

/// Rows of x in int8.
pub(crate) struct Int8Rows {
    /// For each four terms, a word for each row of a group of [`ROWS`].
    words: Words,
    rows: usize,
    depth: usize,
    scales: Vec<f32>,
    outliers: Vec<usize>,
    apart: Option<Packing>,
}

impl Int8 {
    /// Quantizes a matrix on all threads. `outliers` ascend.
    pub(crate) fn new(weights: &Weights<'_>, outliers: &[usize]) -> Self {
        assert!(weights.direction == Direction::Forward, "only products with x are computed in int8");
        assert!(outliers.is_sorted() && outliers.last().is_none_or(|&last| last < weights.columns));
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
                rows.clone().map(|row| quantize_line(weights, row, outliers, &mut line, words)).collect()
            })
            .collect();
        let (offsets, scales) = made.into_iter().flatten().unzip();
        Self { strips, offsets, scales, outputs, depth, outliers: outliers.to_vec(), apart: apart(weights, outliers) }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.strips.bytes() + 8 * self.outputs + self.apart.as_ref().map_or(0, Packed::bytes)
    }

    /// Whether rows that were quantized for one of the two can be multiplied by the other.
    pub(crate) fn shares_rows_with(&self, other: &Self) -> bool {
        self.depth == other.depth && self.outliers == other.outliers
    }

    /// Quantizes rows of x for products with this matrix; `also` hears of rows as soon as they were read.
    pub(crate) fn quantize(&self, x: &[f32], also: &(dyn Fn(Range<usize>) + Sync)) -> Int8Rows {
        let (depth, rows) = (self.depth, x.len() / self.depth);
        assert_eq!(x.len(), rows * depth, "rows of {depth} numbers");
        let group_words = depth.div_ceil(4) * ROWS;
        let mut words = Words::NONE;
        let mut scales = vec![0.0; rows];
        let work = |(group, (words, scales)): (usize, (&mut [u32], &mut [f32]))| {
            let range = group * ROWS..group * ROWS + scales.len();
            let mut line = vec![128u8; depth.next_multiple_of(4)];
            for ((lane, row), scale) in range.clone().enumerate().zip(scales) {
                *scale = quantize_row(&x[row * depth..][..depth], &self.outliers, &mut line);
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
        let apart = (!self.outliers.is_empty()).then(|| {
            let picked: Vec<f32> =
                x.chunks_exact(depth).flat_map(|row| self.outliers.iter().map(|&column| row[column])).collect();
            pack(Compute::Bfloat16, &picked, self.outliers.len(), &|_| {})
        });
        Int8Rows { words, rows, depth, scales, outliers: self.outliers.clone(), apart }
    }

    /// `y = start + x Wᵀ`, on all threads.
    pub(crate) fn product(&self, x: &Int8Rows, mut y: MatrixMut<'_>, start: Start<'_>) {
        assert!(x.depth == self.depth && x.outliers == self.outliers, "x was quantized for another matrix");
        assert!(y.shape() == (x.rows, self.outputs), "the output of {} rows is {:?}", x.rows, y.shape());
        let (data, stride) = y.raw();
        let start = match (&self.apart, &x.apart) {
            (Some(weights), Some(x)) => {
                // SAFETY: the same matrix, which nobody else looks at meanwhile.
                weights.product(x, unsafe { MatrixMut::from_raw(data, x.rows(), self.outputs, stride) }, start);
                Start::Sum
            }
            _ => start,
        };
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
                let words = unsafe { x.words.as_ptr().add(group * self.depth.div_ceil(4) * ROWS) };
                for strip in strips.clone() {
                    let columns = strip * STRIP..((strip + 1) * STRIP).min(self.outputs);
                    let mut sums = [[0i32; STRIP]; ROWS];
                    // SAFETY: a group and a strip, as they were packed.
                    unsafe {
                        let units = self.depth.div_ceil(4);
                        vnni::multiply(path, units, words, self.strips.as_ptr().add(strip * units * STRIP), &mut sums);
                    }
                    let numbers = (&self.offsets[columns.clone()], &self.scales[columns.clone()]);
                    let at = columns.start - strips.start * STRIP;
                    for (index, row) in rows.clone().enumerate() {
                        let y = &mut block.row(index)[at..at + columns.len()];
                        let adds = !matches!(start, Start::Zero);
                        scale_sums(y, &sums[index], numbers, x.scales[row], adds);
                    }
                }
            }
        });
    }
}

impl Int8Rows {
    /// How many there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }
}

impl fmt::Debug for Int8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Int8({} × {}, {} outliers)", self.outputs, self.depth, self.outliers.len())
    }
}

/// Writes a row of weights into its strip; gives 128 · Σ w, and the scale.
fn quantize_line(
    weights: &Weights<'_>,
    row: usize,
    outliers: &[usize],
    line: &mut [f32],
    words: &mut [u32],
) -> (i32, f32) {
    weights.source.read(row * weights.stride, line);
    outliers.iter().for_each(|&column| line[column] = 0.0);
    let (largest, is_finite) = largest(line);
    let (scale, inverse) = scales(largest, is_finite);
    let mut sum = 0;
    for (k, &w) in line.iter().enumerate() {
        let number = (w * inverse).round_ties_even().clamp(-LARGEST, LARGEST) as i32;
        sum += number;
        words[k / 4 * STRIP + row % STRIP] |= u32::from(number as i8 as u8) << (8 * (k % 4));
    }
    (128 * sum, scale)
}

/// What a whole number stands for, and its inverse. What is not finite makes every product so.
fn scales(largest: f32, is_finite: bool) -> (f32, f32) {
    match largest {
        _ if !is_finite => (f32::NAN, 0.0),
        largest if largest < LEAST => (0.0, 0.0),
        largest => (largest / LARGEST, LARGEST / largest),
    }
}

/// The weights of outliers, packed.
fn apart(weights: &Weights<'_>, outliers: &[usize]) -> Option<Packed> {
    if outliers.is_empty() {
        return None;
    }
    let (rows, columns) = (weights.rows, outliers.len());
    let mut line = vec![0.0; weights.columns];
    let mut picked = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        weights.source.read(row * weights.stride, &mut line);
        picked.extend(outliers.iter().map(|&column| line[column]));
    }
    let source = Source::F32(&picked);
    let weights = Weights { source, rows, columns, stride: columns, direction: Direction::Forward };
    Some(Packed::new(Compute::Bfloat16, &weights))
}

simd! {
    /// The largest magnitude, and whether all numbers are finite.
    fn largest(x: &[f32]) -> (f32, bool) {
        const LANES: usize = 16;
        let (mut most, mut sums) = ([0.0f32; LANES], [0.0f32; LANES]);
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                let x = chunk[lane].abs();
                most[lane] = if x > most[lane] { x } else { most[lane] };
                // Stays zero unless a number is infinite or NaN.
                sums[lane] += x * 0.0;
            }
        }
        let mut sum: f32 = sums.iter().sum();
        let mut all = most.iter().fold(0.0f32, |all, &x| all.max(x));
        for x in rest {
            all = all.max(x.abs());
            sum += x * 0.0;
        }
        (all, sum == 0.0)
    }
}

simd! {
    /// Writes whole numbers, 128 too large; gives their scale. Outliers become zero.
    fn quantize_row(x: &[f32], outliers: &[usize], line: &mut [u8]) -> f32 {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
        let (mut most, mut is_finite) = largest(x);
        if !outliers.is_empty() {
            let mut rest = x.to_vec();
            outliers.iter().for_each(|&column| rest[column] = 0.0);
            (most, is_finite) = (largest(&rest).0, is_finite);
        }
        let (scale, inverse) = scales(most, is_finite);
        for (line, x) in line.iter_mut().zip(x) {
            let number = (x * inverse).clamp(-LARGEST, LARGEST) + ROUND;
            *line = (number.to_bits() as u8).wrapping_add(128);
        }
        outliers.iter().for_each(|&column| line[column] = 128);
        scale
    }
}

simd! {
    fn scale_sums(
        y: &mut [f32],
        sums: &[i32; STRIP],
        numbers: (&[i32], &[f32]),
        scale: f32,
        adds: bool,
    ) {
        let (offsets, scales) = numbers;
        for (((y, sum), offset), of_column) in y.iter_mut().zip(sums).zip(offsets).zip(scales) {
            let value = (sum - offset) as f32 * (scale * of_column);
            *y = if adds { *y + value } else { value };
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
            for row in x.chunks_exact_mut(depth) {
                outliers.iter().for_each(|&column: &usize| row[column] *= 100.0);
            }
            let weights = Weights {
                source: Source::F32(&w),
                rows: outputs,
                columns: depth,
                stride: depth,
                direction: Direction::Forward,
            };
            let int8 = Int8::new(&weights, outliers);
            let before = numbers(rows * outputs, 3);
            for start in [Start::Zero, Start::Sum] {
                let mut y = before.clone();
                let quantized = int8.quantize(&x, &|_| {});
                int8.product(&quantized, MatrixMut::new(&mut y, rows, outputs, outputs), start);
                for (at, y) in y.iter().enumerate() {
                    let terms = x[at / outputs * depth..][..depth].iter().zip(&w[at % outputs * depth..]);
                    let mut expected: f64 = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    if matches!(start, Start::Sum) {
                        expected += f64::from(before[at]);
                    }
                    // Half a step of each factor, times the root of the number of terms, five deviations; and bf16.
                    let bound = 5.0 * (depth as f64).sqrt() / 127.0 + 1.5 * outliers.len() as f64;
                    assert!((f64::from(*y) - expected).abs() < bound, "{rows}×{outputs}×{depth}: {y} for {expected}");
                }
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
        let int8 = Int8::new(&weights, &[4]);
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
