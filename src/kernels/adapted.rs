//! Frozen layers with adapters, as kernels see them: `y = x Wᵀ + b + s · drop(x) Aᵀ Bᵀ`.

use std::ops::Range;

use candle_core::Tensor;

use super::constant::Constant;
use super::low_rank::LowRank;
use super::matrix::FrozenMatrix;

/// One layer in a forward pass.
pub(crate) struct Layer<'a> {
    pub(crate) weight: &'a FrozenMatrix,
    pub(crate) bias: Option<&'a Constant>,
    /// Adapters, each of some rows; rows of none of them pass through the frozen layer alone.
    pub(crate) low_rank: Vec<(Range<usize>, &'a LowRank)>,
}

/// An adapter in a backward pass.
pub(crate) struct LowRankBackward<'a> {
    pub(crate) pair: &'a LowRank,
    /// The input, and `u = drop(x) Aᵀ`, of the forward.
    pub(crate) x: &'a Tensor,
    pub(crate) u: &'a Tensor,
    /// The gradient of A, and whether to add to what it holds.
    pub(crate) of_a: (&'a Tensor, bool),
    /// The same of B.
    pub(crate) of_b: (&'a Tensor, bool),
}
