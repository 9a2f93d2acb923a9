//! Every path gives the bits of the definition.

use half::{bf16, f16};

use super::strided::matmul_on;
use super::tasks::pack_on;
use super::*;
use crate::kernels::cpu::nf4::Nf4;

/// An output of `columns`.
fn whole(y: &mut [f32], columns: usize) -> MatrixMut<'_> {
    let rows = y.len() / columns;
    MatrixMut::new(y, rows, columns, columns)
}

fn product_on(path: Path, compute: Compute, weights: &Weights<'_>, x: &[f32], y: MatrixMut<'_>, accumulate: bool) {
    let packed = pack_on(path, compute, x, weights.depth(), &|_| {});
    product(weights, &packed, y, if accumulate { Start::Sum } else { Start::Zero });
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n
    }

    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
    }

    /// Ordinary numbers, or those at the ends of the range and beyond.
    fn f32(&mut self, is_odd: bool) -> f32 {
        if !is_odd || self.below(8) > 0 {
            return self.normal();
        }
        let special = [0.0, -0.0, 1e-45, -1e-40, 1.175_494_2e-38, f32::MIN_POSITIVE, 1e-20, -1e-19, 3.4e38, -3.4e38];
        let more = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::from_bits(0xffa1_2345), 1e-25, 2.5e-19];
        match self.below(64) {
            0 => more[self.below(more.len())],
            1..40 => special[self.below(special.len())],
            // Products that end near the smallest normal number.
            _ => f32::from_bits((self.next() as u32 & 0x807f_ffff) | ((1 + self.below(70) as u32) << 23)),
        }
    }

    fn f32s(&mut self, len: usize, is_odd: bool) -> Vec<f32> {
        (0..len).map(|_| self.f32(is_odd)).collect()
    }
}

/// The paths that this CPU has; the portable one is exact in f32 only where it is fused.
fn paths(compute: Compute) -> Vec<Path> {
    let mut paths = vec![Path::of_this_cpu(compute)];
    if paths[0] == Path::Avx512 {
        paths.push(Path::Avx2);
    }
    if compute == Compute::Bfloat16 && paths[0] != Path::Portable {
        paths.push(Path::Portable);
    }
    paths.retain(|&path| path != Path::Portable || compute == Compute::Bfloat16 || cfg!(not(target_arch = "x86_64")));
    paths
}

/// `y = x Wᵀ` (or `+=`) by definition: `x` `(n, depth)`, `w` `(outputs, depth)`, `y` `(n, outputs)`.
fn by_definition(compute: Compute, x: &[f32], w: &[f32], depth: usize, y: &mut [f32], accumulate: bool) {
    let outputs = w.len() / depth;
    let w_rounded: Vec<u16> = w.iter().map(|&w| arithmetic::round(w)).collect();
    for (x, y) in x.chunks_exact(depth).zip(y.chunks_exact_mut(outputs)) {
        let x_rounded: Vec<u16> = x.iter().map(|&x| arithmetic::round(x)).collect();
        for (row, y) in y.iter_mut().enumerate() {
            let start = if accumulate { *y } else { 0.0 };
            *y = match compute {
                Compute::Float32 => x.iter().zip(&w[row * depth..]).fold(start, |c, (x, w)| x.mul_add(*w, c)),
                Compute::Bfloat16 => {
                    let w = &w_rounded[row * depth..][..depth];
                    let pair = |of: &[u16], k: usize| [of[k], of.get(k + 1).copied().unwrap_or(0)];
                    (0..depth).step_by(2).fold(start, |c, k| arithmetic::dot_pair(c, pair(&x_rounded, k), pair(w, k)))
                }
            };
        }
    }
}

fn transposed(w: &[f32], columns: usize) -> Vec<f32> {
    let rows = w.len() / columns;
    (0..w.len()).map(|i| w[i % rows * columns + i / rows]).collect()
}

/// NaN payloads included where `compute` defines them.
fn assert_same_bits(compute: Compute, got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let is_same =
            got.to_bits() == expected.to_bits() || compute == Compute::Float32 && got.is_nan() && expected.is_nan();
        assert!(is_same, "{what}: element {i}: {got:e} for {expected:e}");
    }
}

/// Both directions, every storage and path, packed or not, accumulating or not, against the definition.
fn check(random: &mut Random, compute: Compute, (n, rows, columns): (usize, usize, usize), is_odd: bool) {
    let weights = random.f32s(rows * columns, is_odd);
    let tame = random.f32s(rows * columns, false);
    // Denormals stay in the stored weights: a product in bf16 has to ignore them.
    let brains: Vec<bf16> = weights.iter().map(|&w| bf16::from_f32(w)).collect();
    let halves: Vec<f16> = tame.iter().map(|&w| f16::from_f32(w)).collect();
    let nf4 = Nf4::quantize(tame.len(), |first, out| out.copy_from_slice(&tame[first..first + out.len()]));
    for source in [Source::F32(&weights), Source::Bf16(&brains), Source::F16(&halves), Source::Nf4(&nf4)] {
        let mut wide = vec![0.0; rows * columns];
        source.read(0, &mut wide);
        for direction in [Direction::Forward, Direction::Backward] {
            let weights = Weights { source, rows, columns, stride: columns, direction };
            let (outputs, depth) = (weights.outputs(), weights.depth());
            let w = if direction == Direction::Forward { wide.clone() } else { transposed(&wide, columns) };
            let x = random.f32s(n * depth, is_odd);
            let start = random.f32s(n * outputs, is_odd);
            for accumulate in [false, true] {
                let mut expected = start.clone();
                by_definition(compute, &x, &w, depth, &mut expected, accumulate);
                for path in paths(compute) {
                    let what = format!("{n}×{rows}×{columns} {direction:?} {accumulate} {path:?} {compute:?}");
                    let mut y = start.clone();
                    product_on(path, compute, &weights, &x, whole(&mut y, outputs), accumulate);
                    assert_same_bits(compute, &y, &expected, &what);
                    let mut y = start.clone();
                    let (packed, starts) =
                        (pack_on(path, compute, &x, depth, &|_| {}), if accumulate { Start::Sum } else { Start::Zero });
                    Packed::on(path, compute, &weights).product(&packed, whole(&mut y, outputs), starts);
                    assert_same_bits(compute, &y, &expected, &format!("{what} packed"));
                    if accumulate {
                        let mut y = vec![f32::NAN; start.len()];
                        let write = |row: usize, column: usize, mut block: MatrixMut<'_>| {
                            let (rows, columns) = block.shape();
                            for index in 0..rows {
                                let from = (row + index) * outputs + column;
                                block.row(index).copy_from_slice(&start[from..from + columns]);
                            }
                        };
                        product(&weights, &packed, whole(&mut y, outputs), Start::Written(&write));
                        assert_same_bits(compute, &y, &expected, &format!("{what} written"));
                    }
                }
            }
        }
    }
}

#[test]
fn every_path_gives_the_bits_of_the_definition() {
    let mut random = Random(88_172_645_463_325_252);
    for compute in [Compute::Bfloat16, Compute::Float32] {
        for n in 1..=30 {
            let shape = (n, 1 + random.below(90), 1 + random.below(90));
            check(&mut random, compute, shape, n % 2 == 0);
        }
        for case in 0..16 {
            let shape = (1 + random.below(40), 1 + random.below(300), 1 + random.below(300));
            check(&mut random, compute, shape, case % 2 == 0);
        }
        // More than one block along k and more than one tile, in either direction.
        check(&mut random, compute, (5, 600, 1100), compute == Compute::Bfloat16);
        check(&mut random, compute, (17, 1031, 521), false);
    }
}

/// Chains that are nothing but the ends of the range.
#[test]
fn specials_give_the_same_bits() {
    let mut random = Random(1_234_567);
    let numbers: [u16; 18] = [
        0, 0x8000, 1, 0x8001, 0x7f, 0x80, 0x8080, 0x3f80, 0xbf80, 0x7f80, 0xff80, 0x7f81, 0xffc2, 0x7f7f, 0xff7f,
        0x1f80, 0x2000, 0x9fff,
    ];
    for round in 0..300 {
        // Without NaN and infinity most rounds, or little else is seen.
        let count = if round % 5 == 0 { numbers.len() } else { 9 };
        let mut pick = || {
            let i = random.below(count);
            numbers[if count == 9 && i == 8 { 15 + random.below(3) } else { i }]
        };
        let (n, rows, columns) = (3, 20, 5);
        let w: Vec<bf16> = (0..rows * columns).map(|_| bf16::from_bits(pick())).collect();
        let x: Vec<f32> = (0..n * columns).map(|_| f32::from_bits(u32::from(pick()) << 16)).collect();
        let wide: Vec<f32> = w.iter().map(|w| f32::from_bits(u32::from(w.to_bits()) << 16)).collect();
        let mut expected = vec![0.0; n * rows];
        by_definition(Compute::Bfloat16, &x, &wide, columns, &mut expected, false);
        let weights =
            Weights { source: Source::Bf16(&w), rows, columns, stride: columns, direction: Direction::Forward };
        for path in paths(Compute::Bfloat16) {
            let mut y = vec![0.0; n * rows];
            product_on(path, Compute::Bfloat16, &weights, &x, whole(&mut y, rows), false);
            assert_same_bits(Compute::Bfloat16, &y, &expected, &format!("round {round} {path:?}"));
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_nor_on_the_threads() {
    let mut random = Random(5);
    let (n, rows, columns) = (45, 333, 700);
    let w = random.f32s(rows * columns, false);
    let weights = Weights { source: Source::F32(&w), rows, columns, stride: columns, direction: Direction::Forward };
    let x = random.f32s(n * columns, false);
    for compute in [Compute::Float32, Compute::Bfloat16] {
        for path in paths(compute) {
            let mut all = vec![0.0; n * rows];
            product_on(path, compute, &weights, &x, whole(&mut all, rows), false);
            for threads in [1, 2, 5, 24] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut again = vec![0.0; n * rows];
                pool.install(|| product_on(path, compute, &weights, &x, whole(&mut again, rows), false));
                assert_same_bits(compute, &again, &all, "all rows");
                for row in [0, 13, 44] {
                    let mut one = vec![0.0; rows];
                    let x = &x[row * columns..][..columns];
                    pool.install(|| product_on(path, compute, &weights, x, whole(&mut one, rows), false));
                    assert_same_bits(compute, &one, &all[row * rows..][..rows], "one row");
                }
            }
        }
    }
}

/// Transposed and strided operands on one thread, against the definition.
#[test]
fn strided_products_give_the_bits_of_the_definition() {
    let mut random = Random(99);
    for case in 0..60 {
        let (m, k, n) = (1 + random.below(50), 1 + random.below(120), 1 + random.below(90));
        let gap = random.below(3);
        let (a, b) = (random.f32s(m * k, false), random.f32s(n * k, false));
        let scale = [1.0, 0.25][case % 2];
        let mut expected = random.f32s(m * n, false);
        let start = expected.clone();
        let scaled: Vec<f32> = a.iter().map(|x| scale * x).collect();
        by_definition(Compute::Float32, &scaled, &b, k, &mut expected, true);
        // Each operand as rows or as columns, with a gap behind each.
        let spread = |data: &[f32], width: usize| -> Vec<f32> {
            data.chunks_exact(width).flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(7.0, gap))).collect()
        };
        let (a_rows, a_columns) = (spread(&a, k), spread(&transposed(&a, k), m));
        let (b_rows, b_columns) = (spread(&b, k), spread(&transposed(&b, k), n));
        let of_a = [Matrix::new(&a_rows, m, k, k + gap), Matrix::new(&a_columns, k, m, m + gap).transposed()];
        let of_b = [Matrix::new(&b_rows, n, k, k + gap).transposed(), Matrix::new(&b_columns, k, n, n + gap)];
        for path in paths(Compute::Float32) {
            for a in of_a {
                for b in of_b {
                    let mut y = start.clone();
                    matmul_on(path, &mut MatrixMut::new(&mut y, m, n, n), true, scale, a, b);
                    assert_same_bits(Compute::Float32, &y, &expected, &format!("{m}×{k}×{n} {path:?}"));
                }
            }
        }
    }
}
