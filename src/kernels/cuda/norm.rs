//! Root-mean-square and layer normalisation.

use std::rc::Rc;

use candle_core::{DType, Result};

use super::{Grid, address, args, device_of, kernel, launch, scratch, write_gradient};
use crate::ops::layer_norm::LayerNorm;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::tape::{Tape, Value};

/// As `ops::rms_norm`: each D-wide part of the rows of `x`.
pub(crate) fn rms_norm(tape: &Tape, x: &Value, norm: &Rc<RmsNorm>) -> Result<Value> {
    let device = device_of(x.tensor())?;
    let (dtype, width) = (x.tensor().dtype(), norm.weight.len());
    let rows = x.tensor().elem_count() / width;
    let output = scratch(&device, dtype, x.tensor().shape())?;
    let inverse = scratch(&device, DType::F32, rows)?;
    let weight = norm.weight.on(x.tensor().device())?;
    launch(
        &device,
        &kernel("rms_norm", dtype)?,
        Grid::warp_each(rows),
        args![
            address(&output)?,
            address(&inverse)?,
            address(x.tensor())?,
            address(weight)?,
            rows as u32,
            width as u32,
            norm.epsilon
        ],
    )?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    let (x, norm) = (x.tensor().clone(), Rc::clone(norm));
    Ok(tape.record(output, move |incoming| {
        let weight = norm.weight.on(x.device())?;
        write_gradient(&gradient, &x, |gradient, accumulate| {
            launch(
                &device,
                &kernel("rms_norm_backward", dtype)?,
                Grid::warp_each(rows),
                args![
                    gradient,
                    address(&incoming)?,
                    address(&x)?,
                    address(weight)?,
                    address(&inverse)?,
                    rows as u32,
                    width as u32,
                    accumulate
                ],
            )
        })
    }))
}

/// As `ops::layer_norm`.
pub(crate) fn layer_norm(tape: &Tape, x: &Value, norm: &Rc<LayerNorm>) -> Result<Value> {
    let device = device_of(x.tensor())?;
    let (dtype, (rows, width)) = (x.tensor().dtype(), x.tensor().dims2()?);
    let output = scratch(&device, dtype, (rows, width))?;
    let [means, inverse] = [scratch(&device, DType::F32, rows)?, scratch(&device, DType::F32, rows)?];
    let weight = norm.weight.on(x.tensor().device())?;
    let bias = norm.bias.as_ref().map_or(Ok(0), |bias| address(bias.on(x.tensor().device())?))?;
    launch(
        &device,
        &kernel("layer_norm", dtype)?,
        Grid::warp_each(rows),
        args![
            address(&output)?,
            address(&means)?,
            address(&inverse)?,
            address(x.tensor())?,
            address(weight)?,
            bias,
            rows as u32,
            width as u32,
            norm.epsilon
        ],
    )?;
    let Some(gradient) = x.gradient() else { return Ok(Value::constant(output)) };
    let (x, norm) = (x.tensor().clone(), Rc::clone(norm));
    Ok(tape.record(output, move |incoming| {
        let weight = norm.weight.on(x.device())?;
        write_gradient(&gradient, &x, |gradient, accumulate| {
            launch(
                &device,
                &kernel("layer_norm_backward", dtype)?,
                Grid::warp_each(rows),
                args![
                    gradient,
                    address(&incoming)?,
                    address(&x)?,
                    address(weight)?,
                    address(&means)?,
                    address(&inverse)?,
                    rows as u32,
                    width as u32,
                    accumulate
                ],
            )
        })
    }))
}
