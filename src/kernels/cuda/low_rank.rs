//! The low-rank product by cuBLAS.
//!
//! A and B are f32; products with them round them to the type of activations and sum in f32, and
//! their gradients arrive in f32. The dropped-out copy of `x` exists during a product only.

use candle_core::{Result, Tensor};

use super::dropout::{dropout, masked};
use super::elementwise::narrowed;
use super::gemm::{Operand, gemm};
use super::memory::{device_of, scratch};
use crate::kernels::low_rank::LowRank;
use crate::kernels::mask::Mask;

/// A and B for products with rows like `x`.
pub(in crate::kernels) fn low_rank(
    x: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scaling: f32,
    mask: Option<Mask>,
) -> Result<LowRank> {
    let rank = a.dim(0)?;
    let (a, b) = (narrowed(a, x.dtype())?, narrowed(b, x.dtype())?);
    Ok(LowRank { a, b, rank, scaling, mask })
}

/// `y += s · drop(x) Aᵀ Bᵀ`; gives u = drop(x) Aᵀ, `(N, r)`.
pub(in crate::kernels) fn low_rank_product(x: &Tensor, y: &Tensor, pair: &LowRank) -> Result<Tensor> {
    let device = device_of(x)?;
    let u = scratch(&device, x.dtype(), (x.dim(0)?, pair.rank))?;
    let kept = pair.kept(x)?;
    let of_u = Operand::of(&u)?;
    gemm(&device, of_u, false, 1.0, Operand::of(&kept)?, Operand::of(&pair.a)?.transposed())?;
    gemm(&device, Operand::of(y)?, true, pair.scaling, of_u, Operand::of(&pair.b)?.transposed())?;
    Ok(u)
}

/// ∂L/∂u = s · g B, `(N, r)`.
pub(in crate::kernels) fn gradient_of_u(g: &Tensor, pair: &LowRank) -> Result<Tensor> {
    let device = device_of(g)?;
    let of_u = scratch(&device, g.dtype(), (g.dim(0)?, pair.rank))?;
    gemm(&device, Operand::of(&of_u)?, false, pair.scaling, Operand::of(g)?, Operand::of(&pair.b)?)?;
    Ok(of_u)
}

/// ∂L/∂B = s · gᵀ u, `(out, r)`, to `sum`.
pub(in crate::kernels) fn sum_gradient_of_b(
    g: &Tensor,
    sum: &Tensor,
    accumulate: bool,
    u: &Tensor,
    pair: &LowRank,
) -> Result<()> {
    let g_transposed = Operand::of(g)?.transposed();
    gemm(&device_of(g)?, Operand::of(sum)?, accumulate, pair.scaling, g_transposed, Operand::of(u)?)
}

/// ∂L/∂A = (∂L/∂u)ᵀ drop(x), `(r, in)`, to `sum`.
pub(in crate::kernels) fn sum_gradient_of_a(
    of_u: &Tensor,
    sum: &Tensor,
    accumulate: bool,
    x: &Tensor,
    pair: &LowRank,
) -> Result<()> {
    let kept = pair.kept(x)?;
    let transposed = Operand::of(of_u)?.transposed();
    gemm(&device_of(x)?, Operand::of(sum)?, accumulate, 1.0, transposed, Operand::of(&kept)?)
}

/// `∂L/∂x += mask(∂L/∂u · A)`
pub(in crate::kernels) fn add_gradient_of_x(of_u: &Tensor, sum: &Tensor, pair: &LowRank) -> Result<()> {
    let device = device_of(sum)?;
    let (of_gu, of_a) = (Operand::of(of_u)?, Operand::of(&pair.a)?);
    let Some(mask) = &pair.mask else { return gemm(&device, Operand::of(sum)?, true, 1.0, of_gu, of_a) };
    let product = scratch(&device, sum.dtype(), sum.shape())?;
    gemm(&device, Operand::of(&product)?, false, 1.0, of_gu, of_a)?;
    masked(sum, &product, mask, true)
}

impl LowRank {
    /// x as the adapter sees it.
    fn kept(&self, x: &Tensor) -> Result<Tensor> {
        self.mask.as_ref().map_or_else(|| Ok(x.clone()), |mask| dropout(x, mask))
    }
}
