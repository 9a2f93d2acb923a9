//! Frozen layers with adapters: their parts one after the other.

use candle_core::{Result, Tensor};

use super::low_rank::{
    add_gradient_of_x, gradient_of_u, low_rank_product, low_rank_sum, sum_gradient_of_a, sum_gradient_of_b,
};
use super::rows::add_bias;
use crate::kernels::adapted::{Layer, LowRankBackward};
use crate::kernels::matrix::FrozenMatrix;

/// The outputs of layers that share the input x, each with `u = drop(x) Aᵀ` of its adapters; `residual` is
/// added to each.
pub(in crate::kernels) fn adapted(
    x: &Tensor,
    layers: &[Layer<'_>],
    residual: Option<&Tensor>,
) -> Result<Vec<(Tensor, Vec<Tensor>)>> {
    let output = |layer: &Layer<'_>| {
        // One adapter of all rows is added to the residual first, which takes no copy of it.
        if let (Some(residual), [(rows, pair)]) = (residual, &layer.low_rank[..])
            && rows.len() == x.dim(0)?
            && layer.bias.is_none()
            && let Some((sum, u)) = low_rank_sum(residual, x, pair)?
        {
            return Ok((layer.weight.product(x, Some(sum))?, vec![u]));
        }
        let y = layer.weight.product(x, residual.map(Tensor::copy).transpose()?)?;
        if let Some(bias) = layer.bias {
            add_bias(&y, bias)?;
        }
        let us = layer.low_rank.iter().map(|(rows, pair)| {
            let part = |tensor: &Tensor| tensor.narrow(0, rows.start, rows.len());
            low_rank_product(&part(x)?, &part(&y)?, pair)
        });
        let us = us.collect::<Result<_>>()?;
        Ok((y, us))
    };
    layers.iter().map(output).collect()
}

/// The gradients of A and B, and, if it is wanted, of x: `of_x` has what is there to add to, if anything.
pub(in crate::kernels) fn adapted_backward(
    g: &Tensor,
    weight: &FrozenMatrix,
    low_rank: Option<LowRankBackward<'_>>,
    of_x: Option<Option<Tensor>>,
) -> Result<Option<Tensor>> {
    let mut of_low_rank = None;
    if let Some(LowRankBackward { pair, x, u, of_a, of_b }) = low_rank {
        let of_u = gradient_of_u(g, pair)?;
        sum_gradient_of_b(g, of_b.0, of_b.1, u, pair)?;
        sum_gradient_of_a(&of_u, of_a.0, of_a.1, x, pair)?;
        of_low_rank = Some((pair, of_u));
    }
    let Some(sum) = of_x else { return Ok(None) };
    let sum = weight.product_transposed(g, sum)?;
    if let Some((pair, of_u)) = &of_low_rank {
        add_gradient_of_x(of_u, &sum, pair)?;
    }
    Ok(Some(sum))
}
