//! Root-mean-square and layer normalisation, a warp for each row: see `norm.cu`.

use candle_core::{DType, Result, Tensor};

use super::launch::{Code, Flag, Grid, kernels, ptx};
use super::memory::{Activations, Address, activations, address_of, device_of, floats, scratch, sum_or_new};
use crate::kernels::constant::Constant;

const CODE: Code = Code { name: "norm", ptx: ptx::NORM };

kernels! { CODE:
    fn rms_norm<T>(
        out: Address<Activations>, inverse: Address<f32>, x: Address<Activations>, weight: Address<f32>, rows: u32,
        width: u32, epsilon: f32,
    );
    fn rms_norm_backward<T>(
        gradient: Address<Activations>, g: Address<Activations>, x: Address<Activations>, weight: Address<f32>,
        inverse: Address<f32>, rows: u32, width: u32, accumulate: Flag,
    );
    fn layer_norm<T>(
        out: Address<Activations>, means: Address<f32>, inverse: Address<f32>, x: Address<Activations>,
        weight: Address<f32>, bias: Address<f32>, rows: u32, width: u32, epsilon: f32,
    );
    fn layer_norm_backward<T>(
        gradient: Address<Activations>, g: Address<Activations>, x: Address<Activations>, weight: Address<f32>,
        means: Address<f32>, inverse: Address<f32>, rows: u32, width: u32, accumulate: Flag,
    );
}

/// Rows of a norm's width in `x`, and the width.
fn sizes(x: &Tensor, weight: &Constant) -> (u32, u32, Grid) {
    let rows = x.elem_count() / weight.len();
    (rows as u32, weight.len() as u32, Grid::warp_each(rows))
}

/// Normalises each D-wide part of `x`; gives `1/√(mean(x²) + ε)` of each beside it.
pub(in crate::kernels) fn rms_norm(x: &Tensor, weight: &Constant, epsilon: f32) -> Result<(Tensor, Tensor)> {
    let (device, dtype, (rows, width, grid)) = (device_of(x)?, x.dtype(), sizes(x, weight));
    let output = scratch(&device, dtype, x.shape())?;
    let inverse = scratch(&device, DType::F32, rows as usize)?;
    let weight = address_of(weight.on(&device)?);
    let (out, inverses) = (activations(&output)?, floats(&inverse)?);
    kernel::rms_norm(&device, dtype, grid, out, inverses, activations(x)?, weight, rows, width, epsilon)?;
    Ok((output, inverse))
}

/// The gradient of `x` in [`rms_norm`].
pub(in crate::kernels) fn rms_norm_backward(
    g: &Tensor,
    sum: Option<Tensor>,
    x: &Tensor,
    weight: &Constant,
    inverse: &Tensor,
) -> Result<Tensor> {
    let (device, dtype, (rows, width, grid)) = (device_of(x)?, x.dtype(), sizes(x, weight));
    let (sum, accumulate) = sum_or_new(sum, x, x.shape())?;
    let [out, g, x] = [activations(&sum)?, activations(g)?, activations(x)?];
    let (weight, inverse) = (address_of(weight.on(&device)?), floats(inverse)?);
    kernel::rms_norm_backward(&device, dtype, grid, out, g, x, weight, inverse, rows, width, accumulate)?;
    Ok(sum)
}

/// Normalises each row of `x`; gives the means and `1/√(var(x) + ε)` of the rows beside it.
pub(in crate::kernels) fn layer_norm(
    x: &Tensor,
    weight: &Constant,
    bias: Option<&Constant>,
    epsilon: f32,
) -> Result<(Tensor, [Tensor; 2])> {
    let (device, dtype, (rows, width, grid)) = (device_of(x)?, x.dtype(), sizes(x, weight));
    let output = scratch(&device, dtype, x.shape())?;
    let [means, inverse] = [scratch(&device, DType::F32, rows as usize)?, scratch(&device, DType::F32, rows as usize)?];
    let weight = address_of(weight.on(&device)?);
    let bias = match bias {
        Some(bias) => address_of(bias.on(&device)?),
        None => Address::none(),
    };
    let (out, of_means, of_inverse) = (activations(&output)?, floats(&means)?, floats(&inverse)?);
    let x = activations(x)?;
    kernel::layer_norm(&device, dtype, grid, out, of_means, of_inverse, x, weight, bias, rows, width, epsilon)?;
    Ok((output, [means, inverse]))
}

/// The gradient of `x` in [`layer_norm`].
pub(in crate::kernels) fn layer_norm_backward(
    g: &Tensor,
    sum: Option<Tensor>,
    x: &Tensor,
    weight: &Constant,
    [means, inverse]: &[Tensor; 2],
) -> Result<Tensor> {
    let (device, dtype, (rows, width, grid)) = (device_of(x)?, x.dtype(), sizes(x, weight));
    let (sum, accumulate) = sum_or_new(sum, x, x.shape())?;
    let [out, g, x] = [activations(&sum)?, activations(g)?, activations(x)?];
    let (weight, means, inverse) = (address_of(weight.on(&device)?), floats(means)?, floats(inverse)?);
    kernel::layer_norm_backward(&device, dtype, grid, out, g, x, weight, means, inverse, rows, width, accumulate)?;
    Ok(sum)
}
