//! Arithmetic on tensors, for the CPU and for NVIDIA GPUs: no gradients, no tape.
//!
//! This is the only module with unsafe code, and the only one that knows which devices there are: the
//! table below has every kernel that an op calls, and passes it on to its namesake in `cpu` or `cuda`,
//! wherever the first tensor is. A gradient's kernel gets the sum so far, if there is one, to add to in
//! place; without one it gives a new tensor.

#![warn(missing_docs)]

pub mod activation;
pub mod adamw;
pub(crate) mod adapted;
pub mod attention;
pub(crate) mod buffer;
pub mod constant;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod device;
pub(crate) mod low_rank;
pub mod mask;
pub mod matrix;
pub(crate) mod moments;
pub mod rope;

pub use cpu::gemm::Compute;

use std::ops::Range;

use candle_core::{Result, Tensor};

use activation::Activation;
use adapted::{Layer, LowRankBackward};
use attention::Plan;
use constant::Constant;
use low_rank::LowRank;
use mask::Mask;
use matrix::FrozenMatrix;
use rope::RopeTable;

/// Declares kernels that exist for each device.
macro_rules! kernels {
    ($($(#[$meta:meta])* $module:ident::$name:ident($first:ident: &Tensor $(, $argument:ident: $type:ty)*) -> $output:ty;)*) => {$(
        $(#[$meta])*
        pub(crate) fn $name($first: &Tensor $(, $argument: $type)*) -> Result<$output> {
            #[cfg(feature = "cuda")]
            if $first.device().is_cuda() {
                return cuda::$module::$name($first $(, $argument)*);
            }
            cpu::$module::$name($first $(, $argument)*)
        }
    )*};
}

kernels! {
    /// `a + b`
    elementwise::add(a: &Tensor, b: &Tensor) -> Tensor;
    /// `sum += x`
    elementwise::add_in_place(sum: &Tensor, x: &Tensor) -> ();
    /// `scale · x`, or `sum + scale · x`.
    elementwise::scale(x: &Tensor, sum: Option<Tensor>, scale: f32) -> Tensor;

    /// `f(x)`, or `f(x) ∘ up`.
    activation::activate(x: &Tensor, up: Option<&Tensor>, f: Activation) -> Tensor;
    /// The gradient of `x` in `f(x)`, or in `f(x) ∘ up`.
    activation::activate_backward(
        g: &Tensor, sum: Option<Tensor>, x: &Tensor, up: Option<&Tensor>, f: Activation
    ) -> Tensor;
    /// The gradients of `gate` and of `up` in `f(gate) ∘ up`, new ones.
    activation::gated_backward(g: &Tensor, gate: &Tensor, up: &Tensor, f: Activation) -> [Tensor; 2];
    /// The gradient of `up` in `f(gate) ∘ up`.
    activation::gate_backward(g: &Tensor, sum: Option<Tensor>, gate: &Tensor, f: Activation) -> Tensor;

    /// Normalises each D-wide part of `x`; gives `1/√(mean(x²) + ε)` of each beside it.
    norm::rms_norm(x: &Tensor, weight: &Constant, epsilon: f32) -> (Tensor, Tensor);
    /// The gradient of `x` in [`rms_norm`].
    norm::rms_norm_backward(
        g: &Tensor, sum: Option<Tensor>, x: &Tensor, weight: &Constant, inverse: &Tensor
    ) -> Tensor;
    /// Normalises each row of `x`; gives the means and `1/√(var(x) + ε)` of the rows beside it.
    norm::layer_norm(
        x: &Tensor, weight: &Constant, bias: Option<&Constant>, epsilon: f32
    ) -> (Tensor, [Tensor; 2]);
    /// The gradient of `x` in [`layer_norm`].
    norm::layer_norm_backward(
        g: &Tensor, sum: Option<Tensor>, x: &Tensor, weight: &Constant, moments: &[Tensor; 2]
    ) -> Tensor;

    /// `x` with what is left out set to zero, and the rest scaled.
    dropout::dropout(x: &Tensor, mask: &Mask) -> Tensor;
    /// The same, in place.
    dropout::dropout_in_place(x: &Tensor, mask: &Mask) -> ();

    /// Rotates every head of the rows of `x` in place, by `sign` times the angles of their positions.
    rope::rotate(x: &Tensor, table: &RopeTable, positions: &Constant<u32>, sign: f32) -> ();

    /// Rows `indices` of `x`.
    rows::gather(x: &Tensor, indices: &Constant<u32>) -> Tensor;
    /// The gradient of `x`, of `rows` rows, in [`gather`] of distinct rows.
    rows::scatter(g: &Tensor, sum: Option<Tensor>, indices: &Constant<u32>, rows: usize) -> Tensor;
    /// Some columns of `x`.
    rows::columns(x: &Tensor, columns: Range<usize>) -> Tensor;
    /// The gradient of `x`, of `width` columns, in [`columns`]: zero beside those columns.
    rows::columns_backward(g: &Tensor, sum: Option<Tensor>, columns: Range<usize>, width: usize) -> Tensor;

    /// Attends; gives the output, and of each query and head the log of the sum of its exponentials.
    attention::attention(q: &Tensor, k: &Tensor, v: &Tensor, plan: &Plan) -> (Tensor, Tensor);
    /// The gradients of q, k, v and the tables for queries and for keys, at least those that are wanted.
    attention::attention_backward(
        g: &Tensor, qkv: &[Tensor; 3], output: &Tensor, log_sums: &Tensor, plan: &Plan, wanted: [bool; 5]
    ) -> [Option<Tensor>; 5];

    /// A and B for products with rows like `x`.
    low_rank::low_rank(x: &Tensor, a: &Tensor, b: &Tensor, scaling: f32, mask: Option<Mask>) -> LowRank;
    /// The outputs of layers that share the input x, each with `u = drop(x) Aᵀ` of its adapters; `residual` is
    /// added to each.
    adapted::adapted(
        x: &Tensor, layers: &[Layer<'_>], residual: Option<&Tensor>
    ) -> Vec<(Tensor, Vec<Tensor>)>;
    /// The gradients of A and B, and, if it is wanted, of x: `of_x` has what is there to add to, if anything.
    adapted::adapted_backward(
        g: &Tensor, weight: &FrozenMatrix, low_rank: Option<LowRankBackward<'_>>, of_x: Option<Option<Tensor>>
    ) -> Option<Tensor>;
}

// A head is a few rows: it is computed on the CPU, wherever the base is. All weights are trained on the CPU alone.
pub(crate) use cpu::embedding::{sum_gradient_of_table, sum_table_rows};
pub(crate) use cpu::linear::{add_numbers, linear, linear_backward, sum_columns, sum_outer_products};
pub(crate) use cpu::norm::{sum_gradient_of_scale, trained_layer_norm, trained_layer_norm_backward};
pub(crate) use cpu::rows::{mean_rows, mean_rows_backward};

/// `x` in f32 on the CPU, where it may be already.
pub(crate) fn to_host(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return buffer::tensor(cuda::memory::download(x)?, x.shape().clone());
    }
    Ok(x.clone())
}

/// `x`, of f32 on the CPU, on the device and in the type of `like`.
pub(crate) fn from_host(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if like.device().is_cuda() {
        return cuda::elementwise::from_host(x, like);
    }
    let _ = like;
    Ok(x.clone())
}

/// Returns true if both are on one device.
pub(crate) fn are_together(a: &Tensor, b: &Tensor) -> bool {
    a.device().same_device(b.device())
}
