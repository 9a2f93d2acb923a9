//! The weights of a product as they are stored, read line by line.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::arithmetic::{round, widen};
use super::nf4;
use crate::kernels::cpu::math::simd;
use crate::kernels::cpu::nf4::Nf4;

/// Numbers as stored.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    Nf4(&'a Nf4),
}

/// Which way the chains of a product run through a row-major matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// `y = x Wᵀ`: along a row of W.
    Forward,
    /// `y = g W`: from row to row.
    Backward,
}

/// A row-major matrix, and the product that it takes part in.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Numbers from one row to the next.
    pub(crate) stride: usize,
    pub(crate) direction: Direction,
}

impl Weights<'_> {
    /// Columns of y.
    pub(crate) fn outputs(&self) -> usize {
        match self.direction {
            Direction::Forward => self.rows,
            Direction::Backward => self.columns,
        }
    }

    /// Terms of a chain.
    pub(crate) fn depth(&self) -> usize {
        match self.direction {
            Direction::Forward => self.columns,
            Direction::Backward => self.rows,
        }
    }
}

impl<'a> Source<'a> {
    /// The bits of bf16, if the numbers are stored so.
    pub(super) fn bf16_bits(self) -> Option<&'a [u16]> {
        match self {
            Self::Bf16(data) => Some(data.reinterpret_cast()),
            _ => None,
        }
    }

    /// The numbers from flat index `first` on, in f32.
    pub(crate) fn read(self, first: usize, to: &mut [f32]) {
        let range = first..first + to.len();
        match self {
            Self::F32(data) => to.copy_from_slice(&data[range]),
            Self::Bf16(data) => widen_all(to, data[range].reinterpret_cast()),
            Self::F16(data) => data[range].convert_to_f32_slice(to),
            Self::Nf4(weights) => weights.dequantize(first, to),
        }
    }

    /// The same, rounded to bf16 by `round`.
    pub(super) fn read_rounded(self, first: usize, to: &mut [u16], round: impl Fn(&mut [u16], &[f32])) {
        match self {
            Self::F32(data) => round(to, &data[first..][..to.len()]),
            Self::Bf16(data) => to.copy_from_slice(data[first..][..to.len()].reinterpret_cast()),
            Self::Nf4(weights) if nf4::has_look_up() => nf4::read(weights, first, to),
            Self::F16(_) | Self::Nf4(_) => {
                let mut wide = [0.0; 256];
                for (index, to) in to.chunks_mut(wide.len()).enumerate() {
                    let wide = &mut wide[..to.len()];
                    self.read(first + 256 * index, wide);
                    round(to, wide);
                }
            }
        }
    }
}

simd! {
    /// bf16 is the upper half of an f32.
    fn widen_all(to: &mut [f32], from: &[u16]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from) << 16);
        }
    }
}

simd! {
    /// Rounds to bf16.
    pub(super) fn round_all(to: &mut [u16], from: &[f32]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = round(from);
        }
    }
}

simd! {
    /// Rounds to bf16, and back to f32.
    pub(super) fn round_in_place(numbers: &mut [f32]) {
        for x in numbers {
            *x = widen(round(*x));
        }
    }
}
