//! The low-rank product beside a frozen one, `s · drop(x) Aᵀ Bᵀ`, as kernels see it.

use candle_core::Tensor;

use super::mask::Mask;

/// A, B and the mask of one forward and its backward.
pub(crate) struct LowRank {
    /// A, `(r, in)`, in the type of activations.
    pub(crate) a: Tensor,
    /// B, laid out as the device wants it: `(r, out)` on the CPU, `(out, r)` on a GPU.
    pub(crate) b: Tensor,
    pub(crate) rank: usize,
    /// s, α / r.
    pub(crate) scaling: f32,
    /// Dropout of x; `None` keeps all of it.
    pub(crate) mask: Option<Mask>,
}
