//! The low-rank product: in bf16 by kernels that draw dropout on the way, else by cuBLAS.
//!
//! A and B are f32; products with them round them to the type of activations and sum in f32, and
//! their gradients arrive in f32. Where cuBLAS multiplies, a dropped-out copy of `x` exists during a product.

use candle_core::{DType, Result, Tensor, bail};

use super::dropout::{dropout, masked};
use super::elementwise::narrowed;
use super::gemm::{Operand, gemm};
use super::launch::{Code, Flag, Grid, StreamWords, THREADS, WARP, kernels, ptx};
use super::memory::{Activations, Address, activations, address_of, device_of, floats, scratch, scratch_buffer};
use crate::kernels::cpu::flops;
use crate::kernels::low_rank::LowRank;
use crate::kernels::mask::{Choice, Mask};

const CODE: Code = Code { name: "low_rank", ptx: ptx::LOW_RANK };

kernels! { CODE:
    fn add_low_rank<RANK>(
        out: Address<Activations>, base: Address<Activations>, u: Address<Activations>, w: Address<Activations>,
        rows: u32, rank: u32, width: u32, is_transposed: Flag, scale: f32, kept: Address<u8>,
    );
    fn low_rank_inputs<RANK>(
        u: Address<Activations>, x: Address<Activations>, a: Address<Activations>, rows: u32, rank: u32, width: u32,
        kept: Address<u8>, stream: StreamWords, threshold: u32, kept_scale: f32,
    );
    fn low_rank_gradient(
        parts: Address<f32>, g: Address<Activations>, x: Address<Activations>, rows: u32, rank: u32, width: u32,
        rows_of_block: u32, first_rank: u32, kept: Address<u8>, kept_scale: f32,
    );
    fn sum_of_parts(out: Address<f32>, parts: Address<f32>, n: usize, count: u32, accumulate: Flag);
}

/// The kernels' limits, as in low_rank.cu.
const MOST_RANK: usize = 64;
const RANKS_AT_ONCE: usize = 16;
const WARPS: usize = (THREADS / WARP) as usize;

/// Returns true if this file's kernels do the product of activations of a width.
fn is_fused(activations: &Tensor, pair: &LowRank) -> Result<bool> {
    let width = activations.dim(1)?;
    Ok(activations.dtype() == DType::BF16 && width.is_multiple_of(8) && pair.rank <= MOST_RANK)
}

/// A and B for products with rows like `x`.
pub(in crate::kernels) fn low_rank(
    x: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scaling: f32,
    mask: Option<Mask>,
) -> Result<LowRank> {
    let rank = a.dim(0)?;
    let [a, b] = narrowed([a, b], x.dtype())?;
    Ok(LowRank { a, b, rank, scaling, mask })
}

/// `y += s · drop(x) Aᵀ Bᵀ`; gives u = drop(x) Aᵀ, `(N, r)`.
pub(in crate::kernels) fn low_rank_product(x: &Tensor, y: &Tensor, pair: &LowRank) -> Result<Tensor> {
    let u = inputs(x, pair)?;
    if is_fused(y, pair)? {
        add_product(y, y, &u, &pair.b, true, pair.scaling, None)?;
    } else {
        let device = device_of(x)?;
        gemm(&device, Operand::of(y)?, true, pair.scaling, Operand::of(&u)?, Operand::of(&pair.b)?.transposed())?;
    }
    Ok(u)
}

/// `base + s · drop(x) Aᵀ Bᵀ`, a new tensor, and u; none where this file's kernel does not do it.
pub(in crate::kernels) fn low_rank_sum(base: &Tensor, x: &Tensor, pair: &LowRank) -> Result<Option<(Tensor, Tensor)>> {
    if !is_fused(base, pair)? {
        return Ok(None);
    }
    let u = inputs(x, pair)?;
    let sum = scratch(&device_of(base)?, base.dtype(), base.shape())?;
    add_product(&sum, base, &u, &pair.b, true, pair.scaling, None)?;
    Ok(Some((sum, u)))
}

/// u = drop(x) Aᵀ
fn inputs(x: &Tensor, pair: &LowRank) -> Result<Tensor> {
    let (device, (rows, width)) = (device_of(x)?, x.dims2()?);
    let u = scratch(&device, x.dtype(), (rows, pair.rank))?;
    if is_fused(x, pair)? {
        flops::count(rows, width, pair.rank);
        let grid = Grid {
            blocks: (rows.div_ceil(16) as u32, 1),
            threads: THREADS,
            shared_bytes: shared_bytes_of_inputs(pair.rank),
        };
        let [out, from, a] = [activations(&u)?, activations(x)?, activations(&pair.a)?];
        let kept = pair.mask.as_ref().map_or_else(|| Ok(Address::none()), |mask| to_draw(mask, x))?;
        let choice = pair.mask.as_ref().map(|mask| &mask.choice);
        let stream = choice.map(StreamWords::from).unwrap_or_default();
        let (threshold, kept_scale) = (choice.map_or(0, Choice::threshold), choice.map_or(1.0, Choice::scale));
        let [rows, rank, width] = [rows, pair.rank, width].map(|size| size as u32);
        kernel::low_rank_inputs(
            &device, pair.rank, grid, out, from, a, rows, rank, width, kept, stream, threshold, kept_scale,
        )?;
    } else {
        let kept = pair.kept(x)?;
        gemm(&device, Operand::of(&u)?, false, 1.0, Operand::of(&kept)?, Operand::of(&pair.a)?.transposed())?;
    }
    Ok(u)
}

/// Shared memory of a block of `low_rank_inputs`: 16 bytes of two rows of x and of each eighth of A, read ahead.
fn shared_bytes_of_inputs(rank: usize) -> u32 {
    let (stages, parts) = if rank <= RANKS_AT_ONCE { (4, RANKS_AT_ONCE / 8) } else { (2, MOST_RANK / 8) };
    stages * (2 + parts as u32) * THREADS * 16
}

/// Where the mask of x is to be written, once: the backward reads it.
fn to_draw(mask: &Mask, x: &Tensor) -> Result<Address<u8>> {
    if mask.on_device.get().is_none() {
        let _ = mask.on_device.set(scratch_buffer(&device_of(x)?, x.elem_count() / 8)?);
    }
    drawn(Some(mask))
}

/// The mask that the forward has drawn; none keeps all.
fn drawn(mask: Option<&Mask>) -> Result<Address<u8>> {
    let Some(mask) = mask else { return Ok(Address::none()) };
    match mask.on_device.get() {
        Some(bits) => Ok(address_of(bits)),
        None => bail!("an adapter's backward without its forward"),
    }
}

/// `out = base + scale · mask(u W)`, or of the transpose of W: with this file's kernel. Both may be one.
fn add_product(
    out: &Tensor,
    base: &Tensor,
    u: &Tensor,
    w: &Tensor,
    is_transposed: bool,
    scale: f32,
    mask: Option<&Mask>,
) -> Result<()> {
    /// Columns of a block.
    const COLUMNS: usize = 32 * WARPS;
    /// Sixteen rows at a time, a block does so many of them: W is read once for all.
    const TURNS: usize = 4;
    let (device, (rows, width), rank) = (device_of(out)?, out.dims2()?, u.dim(1)?);
    flops::count(rows, rank, width);
    let blocks = (width.div_ceil(COLUMNS) as u32, rows.div_ceil(16 * TURNS) as u32);
    let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
    let [out, base, u, w] = [activations(out)?, activations(base)?, activations(u)?, activations(w)?];
    let kept = drawn(mask)?;
    let scale = scale * mask.map_or(1.0, |mask| mask.choice.scale());
    let [of_rows, of_rank, of_width] = [rows, rank, width].map(|size| size as u32);
    kernel::add_low_rank(&device, rank, grid, out, base, u, w, of_rows, of_rank, of_width, is_transposed, scale, kept)
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
    if is_fused(x, pair)? {
        return sum_gradient_of_a_in_parts(of_u, sum, accumulate, x, pair);
    }
    let kept = pair.kept(x)?;
    let transposed = Operand::of(of_u)?.transposed();
    gemm(&device_of(x)?, Operand::of(sum)?, accumulate, 1.0, transposed, Operand::of(&kept)?)
}

/// The same, with this file's kernels: rows are divided among blocks by the shapes alone, so that sums have one order.
fn sum_gradient_of_a_in_parts(of_u: &Tensor, sum: &Tensor, accumulate: bool, x: &Tensor, pair: &LowRank) -> Result<()> {
    /// Columns of a block.
    const COLUMNS: usize = 64;
    /// About two blocks for each multiprocessor of a large GPU.
    const BLOCKS: usize = 264;
    /// Rows that the warps of a block do at once.
    const ROWS: usize = 16 * WARPS;
    let (device, (rows, width)) = (device_of(x)?, x.dims2()?);
    flops::count(rows, pair.rank, width);
    let columns = width.div_ceil(COLUMNS);
    let rows_of_block = rows.div_ceil(BLOCKS.div_ceil(columns)).next_multiple_of(ROWS);
    let count = rows.div_ceil(rows_of_block);
    let parts = scratch(&device, DType::F32, (count, pair.rank * width))?;
    let grid = Grid { blocks: (columns as u32, count as u32), threads: THREADS, shared_bytes: 0 };
    let (to, [g, from]) = (floats(&parts)?, [activations(of_u)?, activations(x)?]);
    let (kept, kept_scale) = (drawn(pair.mask.as_ref())?, pair.mask.as_ref().map_or(1.0, |mask| mask.choice.scale()));
    let n = pair.rank * width;
    let [rows, rank, width, rows_of_block] = [rows, pair.rank, width, rows_of_block].map(|size| size as u32);
    for first in (0..rank).step_by(RANKS_AT_ONCE) {
        kernel::low_rank_gradient(
            &device,
            grid,
            to,
            g,
            from,
            rows,
            rank,
            width,
            rows_of_block,
            first,
            kept,
            kept_scale,
        )?;
    }
    kernel::sum_of_parts(&device, Grid::over(n), floats(sum)?, to, n, count as u32, accumulate)
}

/// `∂L/∂x += mask(∂L/∂u · A)`
pub(in crate::kernels) fn add_gradient_of_x(of_u: &Tensor, sum: &Tensor, pair: &LowRank) -> Result<()> {
    if is_fused(sum, pair)? {
        return add_product(sum, sum, of_u, &pair.a, false, 1.0, pair.mask.as_ref());
    }
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
