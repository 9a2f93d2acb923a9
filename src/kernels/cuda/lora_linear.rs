//! A frozen linear layer with a low-rank adapter: as `ops::lora_linear`, by cuBLAS.
//!
//! A and B are f32; products with them round them to the type of activations and sum in f32, and
//! their gradients arrive in f32. The dropped-out copy of `x` exists during a product only.

use std::rc::Rc;

use candle_core::{CudaDevice, DType, Result, Tensor};

use super::elementwise::Mask;
use super::gemm::{Operand, gemm};
use super::{Grid, address, args, copy, device_of, kernel, launch, scratch};
use crate::ops::lora_linear::{Adapter, LoraLinear};
use crate::ops::tape::{Param, Tape, Value};

/// Maps `x` `(N, in)` to `(N, out)`, and adds `residual` if given; the shapes were checked.
pub(crate) fn lora_linear(tape: &Tape, x: &Value, layer: &Rc<LoraLinear>, residual: Option<&Value>) -> Result<Value> {
    let device = device_of(x.tensor())?;
    let dtype = x.tensor().dtype();
    let ((rows, inputs), outputs) = (x.tensor().dims2()?, layer.weight.rows());
    let output = scratch(&device, dtype, (rows, outputs))?;
    if let Some(residual) = residual {
        copy(&output, residual.tensor())?;
    }
    layer.weight.on_device()?.product(address(x.tensor())?, address(&output)?, rows, residual.is_some())?;
    if let Some(bias) = &layer.bias {
        let bias = bias.on(x.tensor().device())?;
        let n = rows * outputs;
        let args = args![address(&output)?, address(bias)?, n, outputs as u32];
        launch(&device, &kernel("add_bias", dtype)?, Grid::over(n), args)?;
    }
    let mut low_rank = None;
    if let Some(adapter) = &layer.adapter {
        let products = LowRank::new(&device, adapter, tape, (rows, inputs, outputs), dtype)?;
        let u = products.forward(x.tensor(), &output)?;
        low_rank = Some((products, u));
    }
    let (x_gradient, residual_gradient) = (x.gradient(), residual.and_then(Value::gradient));
    if !tape.is_recording() || low_rank.is_none() && x_gradient.is_none() && residual_gradient.is_none() {
        return Ok(Value::constant(output));
    }
    // Without an adapter the backward does not look at x.
    let x = low_rank.is_some().then(|| x.tensor().clone());
    let layer = Rc::clone(layer);
    Ok(tape.record(output, move |g| {
        if let Some(gradient) = residual_gradient {
            gradient.add(Rc::clone(&g))?;
        }
        let mut low_rank_gradient = None;
        if let (Some(adapter), Some((products, u)), Some(x)) = (&layer.adapter, low_rank, x) {
            let gu = products.backward(adapter, &x, &g, &u)?;
            low_rank_gradient = Some((products, gu));
        }
        let Some(gradient) = x_gradient else { return Ok(()) };
        gradient.write_tensor(
            || scratch(&device, dtype, (rows, inputs)),
            |gradient, accumulate| {
                let gradient = address(gradient)?;
                layer.weight.on_device()?.product_transposed(address(&g)?, gradient, rows, accumulate)?;
                match &low_rank_gradient {
                    Some((products, gu)) => products.add_to_gradient_of_x(gu, gradient),
                    None => Ok(()),
                }
            },
        )
    }))
}

/// The low-rank products of one forward and backward.
struct LowRank {
    device: CudaDevice,
    dtype: DType,
    rows: usize,
    inputs: usize,
    outputs: usize,
    rank: usize,
    scaling: f32,
    /// `(r, in)`, in the type of activations.
    a: Tensor,
    /// `(out, r)`, likewise.
    b: Tensor,
    mask: Option<Mask>,
}

impl LowRank {
    fn new(
        device: &CudaDevice,
        adapter: &Adapter,
        tape: &Tape,
        (rows, inputs, outputs): (usize, usize, usize),
        dtype: DType,
    ) -> Result<Self> {
        let rank = adapter.a.value().dim(0)?;
        let mask = adapter.stream(tape).map(|stream| Mask { stream, p: adapter.dropout });
        let (a, b) = (narrowed(device, &adapter.a, dtype)?, narrowed(device, &adapter.b, dtype)?);
        let scaling = adapter.scaling;
        Ok(Self { device: device.clone(), dtype, rows, inputs, outputs, rank, scaling, a, b, mask })
    }

    fn operand(&self, tensor: &Tensor, shape: (usize, usize)) -> Result<Operand> {
        Ok(Operand::new(address(tensor)?, tensor.dtype(), shape))
    }

    /// `y += scaling · drop(x) Aᵀ Bᵀ`; returns u = drop(x) Aᵀ.
    fn forward(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let kept = self.dropped(x)?;
        let u = scratch(&self.device, self.dtype, (self.rows, self.rank))?;
        let (of_u, of_a) =
            (self.operand(&u, (self.rows, self.rank))?, self.operand(&self.a, (self.rank, self.inputs))?);
        let x = self.operand(kept.as_ref().unwrap_or(x), (self.rows, self.inputs))?;
        gemm(&self.device, of_u, false, 1.0, x, of_a.transposed())?;
        let of_b = self.operand(&self.b, (self.outputs, self.rank))?;
        let y = self.operand(y, (self.rows, self.outputs))?;
        gemm(&self.device, y, true, self.scaling, of_u, of_b.transposed())?;
        Ok(u)
    }

    /// Adds to the gradients of A and B; returns ∂L/∂u.
    fn backward(&self, adapter: &Adapter, x: &Tensor, g: &Tensor, u: &Tensor) -> Result<Tensor> {
        let of_g = self.operand(g, (self.rows, self.outputs))?;
        let gu = scratch(&self.device, self.dtype, (self.rows, self.rank))?;
        let of_gu = self.operand(&gu, (self.rows, self.rank))?;
        gemm(&self.device, of_gu, false, self.scaling, of_g, self.operand(&self.b, (self.outputs, self.rank))?)?;
        let of_u = self.operand(u, (self.rows, self.rank))?;
        adapter.b.accumulate_on_device(|gradient, accumulate| {
            let gradient = self.operand(gradient, (self.outputs, self.rank))?;
            gemm(&self.device, gradient, accumulate, self.scaling, of_g.transposed(), of_u)
        })?;
        let kept = self.dropped(x)?;
        let x = self.operand(kept.as_ref().unwrap_or(x), (self.rows, self.inputs))?;
        adapter.a.accumulate_on_device(|gradient, accumulate| {
            let gradient = self.operand(gradient, (self.rank, self.inputs))?;
            gemm(&self.device, gradient, accumulate, 1.0, of_gu.transposed(), x)
        })?;
        Ok(gu)
    }

    /// `∂L/∂x += mask(∂L/∂u · A)`
    fn add_to_gradient_of_x(&self, gu: &Tensor, gradient: u64) -> Result<()> {
        let shape = (self.rows, self.inputs);
        let of_gu = self.operand(gu, (self.rows, self.rank))?;
        let of_a = self.operand(&self.a, (self.rank, self.inputs))?;
        let Some(mask) = self.mask else {
            return gemm(&self.device, Operand::new(gradient, self.dtype, shape), true, 1.0, of_gu, of_a);
        };
        let product = scratch(&self.device, self.dtype, shape)?;
        gemm(&self.device, self.operand(&product, shape)?, false, 1.0, of_gu, of_a)?;
        mask.apply(&self.device, self.dtype, (gradient, address(&product)?), shape.0 * shape.1, true)
    }

    /// x as the adapter sees it, if that is not x itself.
    fn dropped(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(mask) = self.mask else { return Ok(None) };
        let kept = scratch(&self.device, self.dtype, x.shape())?;
        mask.apply(&self.device, self.dtype, (address(&kept)?, address(x)?), x.elem_count(), false)?;
        Ok(Some(kept))
    }
}

/// A parameter's value in the type of activations.
fn narrowed(device: &CudaDevice, param: &Param, dtype: DType) -> Result<Tensor> {
    let value = param.value();
    if dtype == DType::F32 {
        return Ok(value.clone());
    }
    let narrow = scratch(device, dtype, value.shape())?;
    let n = value.elem_count();
    launch(device, &kernel("narrow", dtype)?, Grid::over(n), args![address(&narrow)?, address(value)?, n])?;
    Ok(narrow)
}
