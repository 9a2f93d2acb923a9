//! Products of f32 matrices with any strides, on the calling thread.

use super::kernel::{Kernel, Shared};
use super::panels::{Input, Packing, Part, Start};
use super::path::{Compute, Path};
use super::tasks::{multiply_part, with_kernel};
use super::tile::COLUMNS;
use super::views::{Matrix, MatrixMut};
use super::weights::{Direction, Source, Weights};
use crate::kernels::cpu::flops;

impl<'a> Matrix<'a> {
    /// As the first factor of a product, times `scale`.
    pub(super) fn as_input(self, scale: f32) -> Input<'a> {
        let Self { data, rows, columns, stride, is_transposed } = self;
        Input { data, rows, depth: columns, stride, is_transposed, scale }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// As the second factor.
    pub(super) fn as_weights(self) -> Weights<'a> {
        let (rows, columns, direction) = match self.is_transposed {
            true => (self.columns, self.rows, Direction::Forward),
            false => (self.rows, self.columns, Direction::Backward),
        };
        Weights { source: Source::F32(self.data), rows, columns, stride: self.stride, direction }
    }
}

/// dst = scale · a · b, or dst += scale · a · b if `accumulate`; on the calling thread. `scale` multiplies
/// the numbers of `a`.
pub(crate) fn matmul(dst: &mut MatrixMut<'_>, accumulate: bool, scale: f32, a: Matrix<'_>, b: Matrix<'_>) {
    matmul_on(Path::of_this_cpu(Compute::Float32), dst, accumulate, scale, a, b);
}

pub(super) fn matmul_on(
    path: Path,
    dst: &mut MatrixMut<'_>,
    accumulate: bool,
    scale: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
) {
    assert!(
        dst.shape() == (a.rows, b.columns) && a.columns == b.rows,
        "product of {}×{} and {}×{} into {:?}",
        a.rows,
        a.columns,
        b.rows,
        b.columns,
        dst.shape()
    );
    flops::count(a.rows, a.columns, b.columns);
    if a.rows == 0 || b.columns == 0 {
        return;
    }
    if a.columns == 0 {
        (0..a.rows).filter(|_| !accumulate).for_each(|row| dst.row(row).fill(0.0));
        return;
    }
    let (x, weights) = (a.as_input(scale), b.as_weights());
    let start = if accumulate { Start::Sum } else { Start::Zero };
    with_kernel!(Compute::Float32, path, K => multiply::<K>(path, dst, start, x, &weights));
}

fn multiply<K: Kernel>(path: Path, dst: &mut MatrixMut<'_>, starts: Start<'_>, x: Input<'_>, weights: &Weights<'_>) {
    let packing = Packing::new::<K>((Compute::Float32, path), x, false, &|_| {});
    let panels = packing.panels::<K>();
    let columns = weights.outputs();
    let (y, y_stride) = dst.raw();
    for start in (0..columns).step_by(COLUMNS) {
        let part =
            Part { panels: 0..panels.count(), columns: start..(start + COLUMNS).min(columns), y: Shared(y), y_stride };
        multiply_part(&panels, weights, &part, starts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_and_transposed_matrices_accumulate() {
        // a: 2×3 inside rows of 4; b: 5×3, used transposed; dst: 2×5 inside rows of 7.
        let a: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..15).map(|i| i as f32 - 7.0).collect();
        let mut dst = vec![1.0; 14];
        let mut view = MatrixMut::new(&mut dst, 2, 5, 7);
        matmul(&mut view, true, 2.0, Matrix::new(&a, 2, 3, 4), Matrix::new(&b, 5, 3, 3).transposed());
        for row in 0..2 {
            for column in 0..5 {
                let sum: f32 = (0..3).map(|k| a[row * 4 + k] * b[column * 3 + k]).sum();
                assert_eq!(dst[row * 7 + column], 1.0 + 2.0 * sum);
            }
            assert_eq!(dst[row * 7 + 5..row * 7 + 7], [1.0, 1.0]);
        }
    }
}
