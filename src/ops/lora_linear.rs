//! A frozen linear layer with a low-rank adapter (Hu et al., 2021):
//! `y = x Wᵀ + b + (α/r) · drop(x) Aᵀ Bᵀ`, with only A and B trained.
//!
//! One op, so that the dropped-out copy of `x` is never stored, only which elements were kept: one
//! bit each, a 32nd of `x`, because drawing them a second and third time in the backward took a
//! twentieth of a step. Products with A and B are r numbers wide; they are done row by row while the
//! row is in cache.

use std::rc::Rc;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::dropout::Mask;
use super::rows_of;
use super::tape::{Param, Tape, Value};
use crate::kernels::buffer::{elements, scratch, tensor};
use crate::kernels::constant::Constant;
use crate::kernels::cpu::gemm::MatrixMut;
use crate::kernels::cpu::math::{add_rows, dot_rows, simd};
use crate::kernels::cpu::par_rows;
use crate::kernels::matrix::FrozenMatrix;
use crate::rng::{Purpose, Stream};

/// A frozen `(out, in)` weight, its bias if the model has one, and an adapter if it is trained.
#[derive(Debug)]
pub struct LoraLinear {
    /// W, `(out, in)`.
    pub weight: FrozenMatrix,
    /// b, `out` values.
    pub bias: Option<Constant>,
    /// The trained part.
    pub adapter: Option<Adapter>,
}

/// The trained part of a [`LoraLinear`].
#[derive(Clone, Debug)]
pub struct Adapter {
    /// A, `(r, in)`.
    pub a: Rc<Param>,
    /// B, `(out, r)`.
    pub b: Rc<Param>,
    /// α / r.
    pub scaling: f32,
    /// Probability with which an element of `x` is left out.
    pub dropout: f32,
    /// Which random stream draws the mask: the position of A in the list of parameters.
    pub site: u32,
}

impl Adapter {
    /// The stream of the mask, or `None` where nothing is left out.
    pub(crate) fn stream(&self, tape: &Tape) -> Option<Stream> {
        let key = tape.dropout().filter(|_| self.dropout > 0.0)?;
        Some(Stream::new(key.seed, self.site, key.micro_batch, Purpose::Dropout))
    }
}

/// Maps `x` `(N, in)` to `(N, out)`, and adds `residual` `(N, out)` if given.
///
/// # Errors
/// If the last dimension of `x` is not `in`, or that of `residual` is not `out`.
pub fn lora_linear(tape: &Tape, x: &Value, layer: &Rc<LoraLinear>, residual: Option<&Value>) -> Result<Value> {
    let (inputs, outputs) = (layer.weight.columns(), layer.weight.rows());
    let rows = rows_of(x.tensor(), inputs)?;
    if let Some(residual) = residual
        && rows_of(residual.tensor(), outputs)? != rows
    {
        bail!("a residual of {:?} for {rows} rows", residual.tensor().dims());
    }
    #[cfg(feature = "cuda")]
    if x.tensor().device().is_cuda() {
        return crate::kernels::cuda::lora_linear::lora_linear(tape, x, layer, residual);
    }
    let mut output = scratch(rows * outputs);
    if let Some(residual) = residual {
        output.copy_from_slice(&elements(residual.tensor())?);
    }
    let input = elements(x.tensor())?;
    layer.weight.product(&input, &mut output, residual.is_some());
    if let Some(bias) = &layer.bias {
        par_rows(&mut output, outputs, |_, block| {
            for y in block.chunks_exact_mut(outputs) {
                for (y, bias) in y.iter_mut().zip(bias.iter()) {
                    *y += bias;
                }
            }
        });
    }
    let mut low_rank = None;
    if let Some(adapter) = &layer.adapter {
        let kernel = Kernel::new(adapter, tape, rows)?;
        let u = kernel.down(&input);
        kernel.add_up(&u, &mut output);
        low_rank = Some((kernel, u));
    }
    drop(input);
    let output = tensor(output, (rows, outputs))?;
    let (x_gradient, residual_gradient) = (x.gradient(), residual.and_then(Value::gradient));
    if !tape.is_recording() || low_rank.is_none() && x_gradient.is_none() && residual_gradient.is_none() {
        return Ok(Value::constant(output));
    }
    // Without an adapter the backward does not look at x.
    let x = low_rank.is_some().then(|| x.tensor().clone());
    let layer = Rc::clone(layer);
    Ok(tape.record(output, move |incoming| {
        if let Some(gradient) = residual_gradient {
            gradient.add(Rc::clone(&incoming))?;
        }
        let g = elements(&incoming)?;
        let mut low_rank_gradient = None;
        if let (Some(adapter), Some((kernel, u)), Some(x)) = (&layer.adapter, low_rank, x) {
            let gu = kernel.backward_up(&g);
            let gb = kernel.gradient_of_b(&g, &u);
            adapter.b.accumulate(|gradient| add_transposed(gradient, &gb, kernel.rank))?;
            adapter.a.accumulate({
                let x = elements(&x)?;
                let ga = kernel.gradient_of_a(&x, &gu);
                move |gradient| {
                    for (sum, value) in gradient.iter_mut().zip(&ga) {
                        *sum += value;
                    }
                }
            })?;
            low_rank_gradient = Some((kernel, gu));
        }
        let Some(gradient) = x_gradient else { return Ok(()) };
        gradient.write(&(rows, inputs).into(), |gradient, accumulate| {
            layer.weight.product_transposed(&g, gradient, accumulate);
            if let Some((kernel, gu)) = &low_rank_gradient {
                kernel.add_backward_down(gu, gradient);
            }
        })
    }))
}

/// The low-rank products of one forward and backward, over copies of A and B that are laid out
/// for them.
struct Kernel {
    /// `(r, in)`
    a: Vec<f32>,
    /// `(r, out)`
    b_transposed: Vec<f32>,
    inputs: usize,
    outputs: usize,
    rank: usize,
    scaling: f32,
    mask: Option<Mask>,
    /// 1 / (1 − p): what is kept counts for what is not.
    mask_scale: f32,
}

/// Columns of a gradient that one task sums: with 16 ranks, 32 KiB of sums.
const COLUMNS: usize = 512;

impl Kernel {
    fn new(adapter: &Adapter, tape: &Tape, rows: usize) -> Result<Self> {
        let (rank, inputs) = adapter.a.value().dims2()?;
        let outputs = adapter.b.value().dim(0)?;
        let b = elements(adapter.b.value())?;
        let mut b_transposed = scratch(rank * outputs);
        for (r, row) in b_transposed.chunks_exact_mut(outputs).enumerate() {
            for (out, value) in row.iter_mut().enumerate() {
                *value = b[out * rank + r];
            }
        }
        let mask = adapter.stream(tape).map(|stream| Mask::draw(&stream, adapter.dropout, (rows, inputs)));
        let mask_scale = if mask.is_some() { 1.0 / (1.0 - adapter.dropout) } else { 1.0 };
        let a = elements(adapter.a.value())?.to_vec();
        Ok(Self { a, b_transposed, inputs, outputs, rank, scaling: adapter.scaling, mask, mask_scale })
    }

    /// u = drop(x) Aᵀ, `(N, r)`.
    fn down(&self, x: &[f32]) -> Vec<f32> {
        let mut u = scratch(x.len() / self.inputs * self.rank);
        dot_all(&mut u, x, &self.a, self.inputs, self.mask_scale, self.mask.as_ref());
        u
    }

    /// y += scaling · u Bᵀ
    fn add_up(&self, u: &[f32], y: &mut [f32]) {
        add_all(y, u, &self.b_transposed, self.outputs, self.scaling, None);
    }

    /// ∂L/∂u = scaling · g B, `(N, r)`.
    fn backward_up(&self, g: &[f32]) -> Vec<f32> {
        let mut gu = scratch(g.len() / self.outputs * self.rank);
        dot_all(&mut gu, g, &self.b_transposed, self.outputs, self.scaling, None);
        gu
    }

    /// (∂L/∂B)ᵀ = scaling · uᵀ g, `(r, out)`.
    fn gradient_of_b(&self, g: &[f32], u: &[f32]) -> Vec<f32> {
        let mut sums = vec![0.0; self.rank * self.outputs];
        sum_outer(&mut sums, g, u, self.outputs, self.scaling, None);
        sums
    }

    /// ∂L/∂A = (∂L/∂u)ᵀ drop(x), `(r, in)`.
    fn gradient_of_a(&self, x: &[f32], gu: &[f32]) -> Vec<f32> {
        let mut sums = vec![0.0; self.rank * self.inputs];
        sum_outer(&mut sums, x, gu, self.inputs, self.mask_scale, self.mask.as_ref());
        sums
    }

    /// ∂L/∂x += mask(∂L/∂u · A)
    fn add_backward_down(&self, gu: &[f32], gradient: &mut [f32]) {
        add_all(gradient, gu, &self.a, self.inputs, self.mask_scale, self.mask.as_ref());
    }
}

simd! {
    /// `out = scale · mask(x) · matrixᵀ`: `x` `(N, width)`, `matrix` `(r, width)`, `out` `(N, r)`.
    fn dot_all(out: &mut [f32], x: &[f32], matrix: &[f32], width: usize, scale: f32, mask: Option<&Mask>) {
        let rank = matrix.len() / width;
        // Blocks of rows by the work they are, not by the size of the output.
        let rows = (16_384 / width).max(1);
        out.par_chunks_mut(rows * rank).enumerate().for_each(|(index, block)| {
            let mut kept = vec![0.0; if mask.is_some() { width } else { 0 }];
            for (row, out) in (index * rows..).zip(block.chunks_exact_mut(rank)) {
                let mut x = &x[row * width..][..width];
                if let Some(mask) = mask {
                    kept.copy_from_slice(x);
                    mask.apply(row, 0, &mut kept);
                    x = &kept;
                }
                dot_rows(matrix, x, out);
                for out in out {
                    *out *= scale;
                }
            }
        });
    }
}

simd! {
    /// `y += mask(scale · c · matrix)`: `c` `(N, r)`, `matrix` `(r, width)`, `y` `(N, width)`.
    fn add_all(y: &mut [f32], c: &[f32], matrix: &[f32], width: usize, scale: f32, mask: Option<&Mask>) {
        let rank = matrix.len() / width;
        par_rows(y, width, |first, block| {
            let mut scaled = vec![0.0; rank];
            let mut product = vec![0.0; if mask.is_some() { width } else { 0 }];
            for (row, y) in (first..).zip(block.chunks_exact_mut(width)) {
                for (scaled, c) in scaled.iter_mut().zip(&c[row * rank..]) {
                    *scaled = scale * c;
                }
                let Some(mask) = mask else {
                    add_rows(y, &scaled, matrix, width);
                    continue;
                };
                product.fill(0.0);
                add_rows(&mut product, &scaled, matrix, width);
                mask.apply(row, 0, &mut product);
                for (y, product) in y.iter_mut().zip(&product) {
                    *y += product;
                }
            }
        });
    }
}

simd! {
    /// `sums += scale · cᵀ · mask(x)`: `c` `(N, r)`, `x` `(N, width)`, `sums` `(r, width)`. Each task
    /// sums its own columns over all rows, so that the order of every sum is fixed.
    fn sum_outer(sums: &mut [f32], x: &[f32], c: &[f32], width: usize, scale: f32, mask: Option<&Mask>) {
        /// Rows taken together: each sum is loaded and stored once for all of them.
        const GROUP: usize = 4;
        let (count, rank) = (x.len() / width, sums.len() / width);
        MatrixMut::new(sums, rank, width, width).par_columns(COLUMNS, |column, mut sums| {
            let columns = COLUMNS.min(width - column);
            let mut kept = [0.0; GROUP * COLUMNS];
            for first in (0..count).step_by(GROUP) {
                let members = GROUP.min(count - first);
                let source = &x[first * width + column..];
                let (data, stride) = if let Some(mask) = mask {
                    for member in 0..members {
                        let out = &mut kept[member * COLUMNS..][..columns];
                        out.copy_from_slice(&source[member * width..][..columns]);
                        mask.apply(first + member, column, out);
                    }
                    (&kept[..], COLUMNS)
                } else {
                    (source, width)
                };
                for r in 0..rank {
                    let mut scaled = [0.0; GROUP];
                    for (member, scaled) in scaled[..members].iter_mut().enumerate() {
                        *scaled = scale * c[(first + member) * rank + r];
                    }
                    add_rows(sums.row(r), &scaled[..members], data, stride);
                }
            }
        });
    }
}

/// `sum` `(out, r)` += `addend`ᵀ, `addend` `(r, out)`.
fn add_transposed(sum: &mut [f32], addend: &[f32], rank: usize) {
    let outputs = sum.len() / rank;
    for (out, sum) in sum.chunks_exact_mut(rank).enumerate() {
        for (r, sum) in sum.iter_mut().enumerate() {
            *sum += addend[r * outputs + out];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::memory::Buffer;
    use crate::kernels::matrix::Storage;
    use crate::ops::finite_differences::{check, check_params, numbers};
    use crate::ops::tape::DropoutKey;

    const INPUTS: usize = 19;
    const OUTPUTS: usize = 13;
    const ROWS: usize = 11;

    fn layer(a: &Rc<Param>, b: &Rc<Param>, dropout: f32) -> Rc<LoraLinear> {
        let weight = Storage::F32(Buffer::Owned(numbers(INPUTS * OUTPUTS, 1)));
        Rc::new(LoraLinear {
            weight: FrozenMatrix::new(weight, OUTPUTS, INPUTS),
            bias: Some(numbers(OUTPUTS, 7).into()),
            adapter: Some(Adapter { a: Rc::clone(a), b: Rc::clone(b), scaling: 1.5, dropout, site: 3 }),
        })
    }

    fn param(shape: (usize, usize), seed: u32) -> Rc<Param> {
        Param::new("p", tensor(numbers(shape.0 * shape.1, seed), shape).unwrap()).unwrap()
    }

    #[test]
    fn lora_linear_passes_finite_differences_for_inputs_residuals_a_and_b() {
        for rank in [2, 6] {
            let inputs = [(numbers(ROWS * INPUTS, 2), (ROWS, INPUTS)), (numbers(ROWS * OUTPUTS, 3), (ROWS, OUTPUTS))];
            let shapes = [(rank, INPUTS), (OUTPUTS, rank)];
            let with_params = layer(&param(shapes[0], 4), &param(shapes[1], 5), 0.0);
            check(&inputs, |tape, inputs| lora_linear(tape, &inputs[0], &with_params, Some(&inputs[1])));
            let params = shapes.map(|shape| (numbers(shape.0 * shape.1, 6), shape));
            check_params(&params, |tape, params| {
                let x = Value::constant(tensor(inputs[0].0.clone(), inputs[0].1)?);
                lora_linear(tape, &x, &layer(&params[0], &params[1], 0.0), None)
            });
        }
    }

    /// With B the identity-like probe, the gradient of x shows the mask that the forward used.
    #[test]
    fn dropout_keeps_the_asked_share_and_the_backward_draws_the_same_mask() {
        let (a, b) = (param((2, INPUTS), 4), param((OUTPUTS, 2), 5));
        let run = |dropout: f32, micro_batch: u32| {
            let layer = layer(&a, &b, dropout);
            let (x, gradient) = Value::leaf(tensor(vec![1.0; 500 * INPUTS], (500, INPUTS)).unwrap());
            let tape = Tape::recording(Some(DropoutKey { seed: 1, micro_batch }));
            let y = lora_linear(&tape, &x, &layer, None).unwrap();
            let output = elements(y.tensor()).unwrap().to_vec();
            // L = Σ y·w is linear in x, so Σ ∂L/∂x · x + (bias part) = L for the very same mask.
            let w = numbers(500 * OUTPUTS, 8);
            tape.backward(&y, tensor(w.clone(), (500, OUTPUTS)).unwrap()).unwrap();
            let gradient = elements(&gradient.take().unwrap()).unwrap().to_vec();
            let bias = layer.bias.as_deref().unwrap();
            let loss: f64 = output
                .iter()
                .zip(&w)
                .enumerate()
                .map(|(i, (y, w))| f64::from(y - bias[i % OUTPUTS]) * f64::from(*w))
                .sum();
            let linear: f64 = gradient.iter().map(|&g| f64::from(g)).sum();
            assert!((loss - linear).abs() < 1e-2, "{loss} {linear}");
            (output, gradient)
        };
        assert_eq!(run(0.3, 5), run(0.3, 5));
        assert_ne!(run(0.3, 5).0, run(0.3, 6).0);
        // The same elements, whatever the cut into rows.
        let stream = Stream::new(1, 2, 3, Purpose::Dropout);
        let mut ones = vec![1.0; 100_000];
        Mask::draw(&stream, 0.3, (1, ones.len())).apply(0, 0, &mut ones);
        let share = ones.iter().filter(|&&x| x > 0.0).count() as f64 / 1e5;
        assert!((share - 0.7).abs() < 0.01, "{share}");
        let rows = Mask::draw(&stream, 0.3, (10, 333));
        let mut part = vec![1.0; 301];
        rows.apply(7, 32, &mut part);
        assert_eq!(part, ones[7 * 333 + 32..8 * 333]);
    }
}
