//! Sums, activations, dropout, rotary positions, rows and columns.

use std::ops::Range;
use std::rc::Rc;

use candle_core::{CudaDevice, DType, Result, Tensor, bail};

use super::{
    Grid, address, address_of, args, clear, device_of, kernel, launch, owned, scratch, upload, write_gradient,
};
use crate::kernels::buffer::elements;
use crate::ops::activation::Activation;
use crate::ops::dropout::threshold;
use crate::ops::rope::RopeTable;
use crate::ops::tape::{Tape, Value};
use crate::rng::Stream;

/// `sum += other`
pub(crate) fn add_in_place(sum: &Tensor, other: &Tensor) -> Result<()> {
    let other = on_device_of(other, sum)?;
    let n = sum.elem_count();
    let sum_address = address(sum)?;
    launch(
        &device_of(sum)?,
        &kernel("add", sum.dtype())?,
        Grid::over(n / 4),
        args![sum_address, sum_address, address(&other)?, n],
    )
}

/// `tensor`, where and as `like` is: a gradient that comes from the CPU is one of f32.
fn on_device_of(tensor: &Tensor, like: &Tensor) -> Result<Tensor> {
    if tensor.device().is_cuda() {
        return Ok(tensor.clone());
    }
    upload(&device_of(like)?, &elements(tensor)?, like.dtype(), tensor.shape())
}

/// `a + b`
pub(crate) fn add(tape: &Tape, a: &Value, b: &Value) -> Result<Value> {
    let device = device_of(a.tensor())?;
    let output = scratch(&device, a.tensor().dtype(), a.tensor().shape())?;
    let n = output.elem_count();
    launch(
        &device,
        &kernel("add", output.dtype())?,
        Grid::over(n / 4),
        args![address(&output)?, address(a.tensor())?, address(b.tensor())?, n],
    )?;
    let gradients = [a.gradient(), b.gradient()];
    if gradients.iter().all(Option::is_none) {
        return Ok(Value::constant(output));
    }
    Ok(tape.record(output, move |incoming| {
        for gradient in gradients.into_iter().flatten() {
            gradient.add(Rc::clone(&incoming))?;
        }
        Ok(())
    }))
}

fn number_of(f: Activation) -> i32 {
    match f {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
        Activation::Tanh => 4,
    }
}

/// `f(x)`, or `f(x) ∘ up`.
pub(crate) fn activate(tape: &Tape, x: &Value, up: Option<&Value>, f: Activation) -> Result<Value> {
    let device = device_of(x.tensor())?;
    let (dtype, f) = (x.tensor().dtype(), number_of(f));
    let output = scratch(&device, dtype, x.tensor().shape())?;
    let n = output.elem_count();
    let up_address = |up: Option<&Tensor>| up.map_or(Ok(0), address);
    launch(
        &device,
        &kernel("activate", dtype)?,
        Grid::over(n / 4),
        args![address(&output)?, address(x.tensor())?, up_address(up.map(Value::tensor))?, n, f],
    )?;
    let gradients = (x.gradient(), up.and_then(Value::gradient));
    if gradients.0.is_none() && gradients.1.is_none() {
        return Ok(Value::constant(output));
    }
    let (x, up) = (x.tensor().clone(), up.map(|up| up.tensor().clone()));
    Ok(tape.record(output, move |g| {
        let (g, x_address, up) = (address(&g)?, address(&x)?, up_address(up.as_ref())?);
        if let Some(gradient) = &gradients.0 {
            write_gradient(gradient, &x, |gradient, accumulate| {
                let args = args![gradient, g, x_address, up, n, f, accumulate];
                launch(&device, &kernel("activate_backward", dtype)?, Grid::over(n / 4), args)
            })?;
        }
        let Some(gradient) = &gradients.1 else { return Ok(()) };
        write_gradient(gradient, &x, |gradient, accumulate| {
            let args = args![gradient, g, x_address, n, f, accumulate];
            launch(&device, &kernel("gate_backward", dtype)?, Grid::over(n / 4), args)
        })
    }))
}

/// A mask, as the kernels draw it.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    pub(super) stream: Stream,
    pub(super) p: f32,
}

impl Mask {
    /// `out = mask(x) / (1 − p)`, or `out += …` if `accumulate`, for n elements.
    pub(super) fn apply(
        &self,
        device: &CudaDevice,
        dtype: DType,
        (out, x): (u64, u64),
        n: usize,
        accumulate: bool,
    ) -> Result<()> {
        let [seed, site, step, purpose] = self.stream.words();
        let scale = 1.0 / (1.0 - self.p);
        let args = args![out, x, n, seed, site, step, purpose, threshold(self.p), scale, accumulate];
        launch(device, &kernel("dropout", dtype)?, Grid::over(n / 4), args)
    }
}

/// Drops elements of `x` with probability `p`.
pub(crate) fn dropout(tape: &Tape, x: &Value, stream: Stream, p: f32) -> Result<Value> {
    let device = device_of(x.tensor())?;
    let (dtype, n, mask) = (x.tensor().dtype(), x.tensor().elem_count(), Mask { stream, p });
    let output = scratch(&device, dtype, x.tensor().shape())?;
    mask.apply(&device, dtype, (address(&output)?, address(x.tensor())?), n, false)?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    Ok(tape.record(output, move |incoming| {
        let incoming = owned(incoming)?;
        let place = address(&incoming)?;
        mask.apply(&device, dtype, (place, place), n, false)?;
        gradient.add(incoming)
    }))
}

/// Rotates in place, as on the CPU.
pub(crate) fn rope(tape: &Tape, x: Value, table: &Rc<RopeTable>, positions: &Rc<[u32]>) -> Result<Value> {
    let device = device_of(x.tensor())?;
    let (rows, width) = x.tensor().dims2()?;
    let positions = device.clone_htod(&**positions)?;
    let table = Rc::clone(table);
    let rotate = move |x: &Tensor, sign: f32| {
        let (cos, sin) = table.on(x.device())?;
        let (head_size, half) = table.widths();
        launch(
            &device,
            &kernel("rope", x.dtype())?,
            Grid::over(rows * (width / head_size) * half),
            args![
                address(x)?,
                address(cos)?,
                address(sin)?,
                address_of(&positions),
                rows as u32,
                width as u32,
                head_size as u32,
                half as u32,
                sign
            ],
        )
    };
    rotate(x.tensor(), 1.0)?;
    let Some(gradient) = x.gradient() else { return Ok(x) };
    Ok(tape.record(x.tensor().clone(), move |incoming| {
        let incoming = owned(incoming)?;
        rotate(&incoming, -1.0)?;
        gradient.add(incoming)
    }))
}

/// Rows `indices` of `x`, distinct.
pub(crate) fn gather(tape: &Tape, x: &Value, indices: &Rc<[u32]>) -> Result<Value> {
    let device = device_of(x.tensor())?;
    let ((_, width), dtype) = (x.tensor().dims2()?, x.tensor().dtype());
    let output = scratch(&device, dtype, (indices.len(), width))?;
    let n = output.elem_count();
    let indices = device.clone_htod(&**indices)?;
    launch(
        &device,
        &kernel("gather", dtype)?,
        Grid::over(n),
        args![address(&output)?, address(x.tensor())?, address_of(&indices), n, width as u32],
    )?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    let x = x.tensor().clone();
    Ok(tape.record(output, move |incoming| {
        gradient.write_tensor(
            || scratch(&device, dtype, x.shape()),
            |gradient, accumulate| {
                if !accumulate {
                    clear(gradient)?;
                }
                launch(
                    &device,
                    &kernel("scatter", dtype)?,
                    Grid::over(n),
                    args![address(gradient)?, address(&incoming)?, address_of(&indices), n, width as u32],
                )
            },
        )
    }))
}

/// Some columns of `x`.
pub(crate) fn columns(tape: &Tape, x: &Value, columns: Range<usize>) -> Result<Value> {
    let device = device_of(x.tensor())?;
    let ((rows, width), dtype) = (x.tensor().dims2()?, x.tensor().dtype());
    let output = scratch(&device, dtype, (rows, columns.len()))?;
    let (width, first, count) = (width as u32, columns.start as u32, columns.len() as u32);
    launch(
        &device,
        &kernel("columns", dtype)?,
        Grid::over(output.elem_count()),
        args![address(&output)?, address(x.tensor())?, output.elem_count(), width, first, count],
    )?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    let x = x.tensor().clone();
    Ok(tape.record(output, move |incoming| {
        let incoming = address(&incoming)?;
        write_gradient(&gradient, &x, |gradient, accumulate| {
            let args = args![gradient, incoming, x.elem_count(), width, first, count, accumulate];
            launch(&device, &kernel("columns_backward", dtype)?, Grid::over(x.elem_count()), args)
        })
    }))
}

/// `x` in f32 on the CPU; its gradient goes back to the GPU.
pub(crate) fn to_host(tape: &Tape, x: &Value) -> Result<Value> {
    let output = crate::kernels::buffer::tensor(super::download(x.tensor())?, x.tensor().shape().clone())?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    let x = x.tensor().clone();
    if x.dims().len() != 2 {
        bail!("expected a matrix, got shape {:?}", x.dims());
    }
    Ok(tape.record(output, move |incoming| gradient.add(Rc::new(on_device_of(&incoming, &x)?))))
}
