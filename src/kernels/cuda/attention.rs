//! Attention over unpadded sequences: see `attention.cu`.

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, sys};
use candle_core::{CudaDevice, DType, Result, Tensor, bail};

use super::launch::{Code, Grid, StreamWords, THREADS, Variant, WARP, kernels, ptx};
use super::memory::{Activations, Address, activations, address_of, device_of, floats, scratch};
use super::relative::{Products, Side, table_gradient};
use super::shape::Shape;
use super::tiles::Tiles;
use crate::kernels::attention::{AttentionKind, Plan};
use crate::kernels::cpu::flops;

const CODE: Code = Code { name: "attention", ptx: ptx::ATTENTION };

kernels! { CODE:
    fn attention<T, WIDTH>(
        out: Address<Activations>, log_sums: Address<f32>, q: Address<Activations>, k: Address<Activations>,
        v: Address<Activations>, sequences: Address<u32>, tiles: Address<u32>, shape: Shape,
    );
    fn attention_deltas<T>(
        deltas: Address<f32>, g: Address<Activations>, out: Address<Activations>, n: usize, head_size: u32,
    );
    fn attention_backward_q<T, WIDTH>(
        gq: Address<Activations>, g: Address<Activations>, q: Address<Activations>, k: Address<Activations>,
        v: Address<Activations>, log_sums: Address<f32>, deltas: Address<f32>, sequences: Address<u32>,
        tiles: Address<u32>, shape: Shape,
    );
    fn attention_backward_kv<T, WIDTH>(
        gk: Address<Activations>, gv: Address<Activations>, g: Address<Activations>, q: Address<Activations>,
        k: Address<Activations>, v: Address<Activations>, log_sums: Address<f32>, deltas: Address<f32>,
        sequences: Address<u32>, tiles: Address<u32>, shape: Shape,
    );
}

/// Attends; gives the output, and of each query and head the log of the sum of its exponentials.
pub(in crate::kernels) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, plan: &Plan) -> Result<(Tensor, Tensor)> {
    let (device, dtype) = (device_of(q)?, q.dtype());
    let output = scratch(&device, dtype, q.shape())?;
    let log_sums = scratch(&device, DType::F32, (plan.queries, plan.kind.heads))?;
    let products = plan.relative.as_ref().map(|relative| Products::new(&device, [q, k], relative, plan, false));
    let products = products.transpose()?;
    let work = Work::new(&device, dtype, plan, Pass::Forward, products.as_ref())?;
    let [out, q, k, v] = [activations(&output)?, activations(q)?, activations(k)?, activations(v)?];
    let (tiles, sequences) = (address_of(&work.tiles), address_of(plan.sequences.on(&device)?));
    kernel::attention(
        &device,
        work.variant,
        work.grid,
        out,
        floats(&log_sums)?,
        q,
        k,
        v,
        sequences,
        tiles,
        work.shape,
    )?;
    Ok((output, log_sums))
}

/// The gradients of q, k, v and the tables for q and for k that are wanted; k's and v's come together.
pub(in crate::kernels) fn attention_backward(
    g: &Tensor,
    qkv: &[Tensor; 3],
    output: &Tensor,
    log_sums: &Tensor,
    plan: &Plan,
    wanted: [bool; 5],
) -> Result<[Option<Tensor>; 5]> {
    let (device, dtype, count) = (device_of(g)?, g.dtype(), plan.queries * plan.kind.heads);
    let deltas = scratch(&device, DType::F32, count)?;
    let (of_g, of_output, head_size) = (activations(g)?, activations(output)?, plan.kind.head_size as u32);
    let grid = Grid::warp_each(count);
    kernel::attention_deltas(&device, dtype, grid, floats(&deltas)?, of_g, of_output, count, head_size)?;
    let sequences = address_of(plan.sequences.on(&device)?);
    let [q, k, v] = [activations(&qkv[0])?, activations(&qkv[1])?, activations(&qkv[2])?];
    let (sums, deltas) = (floats(log_sums)?, floats(&deltas)?);
    let mut found = [None, None, None, None, None];
    let products = plan.relative.as_ref();
    let products = products.map(|relative| Products::new(&device, [&qkv[0], &qkv[1]], relative, plan, true));
    let products = products.transpose()?;
    let has_tables =
        plan.relative.as_ref().is_some_and(|relative| relative.keys.is_some() || relative.queries.is_some());
    let mut shape_of_slopes = None;
    if wanted[0] || has_tables {
        let work = Work::new(&device, dtype, plan, Pass::Queries, products.as_ref())?;
        shape_of_slopes = Some(work.shape);
        let new = scratch(&device, dtype, qkv[0].shape())?;
        let (tiles, gq) = (address_of(&work.tiles), activations(&new)?);
        kernel::attention_backward_q(
            &device,
            work.variant,
            work.grid,
            gq,
            of_g,
            q,
            k,
            v,
            sums,
            deltas,
            sequences,
            tiles,
            work.shape,
        )?;
        found[0] = Some(new);
    }
    if wanted[1] || wanted[2] {
        let work = Work::new(&device, dtype, plan, Pass::Keys, products.as_ref())?;
        let [of_keys, of_values] = [scratch(&device, dtype, qkv[1].shape())?, scratch(&device, dtype, qkv[2].shape())?];
        let (tiles, [gk, gv]) = (address_of(&work.tiles), [activations(&of_keys)?, activations(&of_values)?]);
        kernel::attention_backward_kv(
            &device,
            work.variant,
            work.grid,
            gk,
            gv,
            of_g,
            q,
            k,
            v,
            sums,
            deltas,
            sequences,
            tiles,
            work.shape,
        )?;
        found[1..3].clone_from_slice(&[Some(of_keys), Some(of_values)]);
    }
    if let (Some(relative), Some(shape)) = (&plan.relative, shape_of_slopes) {
        let sides = [(&relative.keys, Side::Queries, 0), (&relative.queries, Side::Keys, 1)];
        for (table, side, input) in sides {
            let Some(table) = table else { continue };
            let of_table = table_gradient(side, (&qkv[input], found[input].as_ref()), table, plan, shape)?;
            found[3 + input] = Some(of_table);
        }
    }
    Ok(found)
}

/// What a kernel goes over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Queries,
    Keys,
}

/// One kernel over tiles of queries or of keys.
struct Work {
    variant: Variant,
    grid: Grid,
    shape: Shape,
    /// Pairs: a sequence, and its first query or key of the tile.
    tiles: Arc<CudaSlice<u32>>,
}

impl Work {
    fn new(device: &CudaDevice, dtype: DType, plan: &Plan, pass: Pass, products: Option<&Products>) -> Result<Self> {
        // The scores are computed in each pass, their gradient in both of the backward.
        count(
            plan,
            match pass {
                Pass::Forward => 2,
                Pass::Queries => 3,
                Pass::Keys => 4,
            },
        );
        let AttentionKind { heads, key_value_heads, head_size, is_causal, window, scale, soft_cap, .. } = plan.kind;
        let Tiling { variant, rows: tile, threads, shared_bytes, parts } = Tiling::of(device, dtype, head_size, pass)?;
        let of_keys = pass == Pass::Keys;
        // Later queries see more keys: the longest work starts first.
        let wanted = Tiles { of_keys, rows: tile, latest_first: !of_keys && is_causal };
        let tiles = plan.tiles.on(device, wanted, plan.offsets_of(of_keys))?;
        let shared_heads = if pass == Pass::Keys { key_value_heads } else { heads };
        let grid = Grid { blocks: ((shared_heads * parts) as u32, tiles.len() as u32 / 2), threads, shared_bytes };
        let mut shape = Shape {
            heads: heads as u32,
            key_heads: key_value_heads as u32,
            head_size: head_size as u32,
            tokens: plan.tokens as u32,
            tile: tile as u32,
            is_causal: u32::from(is_causal),
            window: window.map_or(0, |window| u32::try_from(window).unwrap_or(u32::MAX / 2)),
            scale,
            cap: soft_cap.unwrap_or(0.0),
            stream: plan.kept.as_ref().map(StreamWords::from).unwrap_or_default(),
            threshold: plan.kept.map_or(0, |choice| choice.threshold()),
            kept_scale: plan.kept.map_or(0.0, |choice| choice.scale()),
            longest: 0,
            rows: Address::none(),
            table: 0,
            of_queries: Address::none(),
            of_keys: Address::none(),
            bias: Address::none(),
            slopes: Address::none(),
        };
        if let Some((products, relative)) = products.zip(plan.relative.as_ref()) {
            products.describe(device, relative, &mut shape)?;
        }
        Ok(Self { variant, grid, shape, tiles })
    }
}

/// Counts the work of `products` matrix products over what the queries see.
fn count(plan: &Plan, products: usize) {
    let AttentionKind { heads, head_size, is_causal, .. } = plan.kind;
    let sequences = plan.offsets.windows(2).zip(plan.query_offsets.windows(2));
    let pairs: usize = sequences
        .map(|(keys, queries)| {
            let (queries, keys) = (queries[1] - queries[0], keys[1] - keys[0]);
            if is_causal && queries == keys { keys * (keys + 1) / 2 } else { queries * keys }
        })
        .sum();
    flops::count(products * heads, head_size, pairs);
}

/// Tiles, threads and shared memory of an attention kernel.
struct Tiling {
    variant: Variant,
    /// Rows of a tile.
    rows: usize,
    threads: u32,
    shared_bytes: u32,
    /// Blocks that share the columns of a head.
    parts: usize,
}

impl Tiling {
    fn of(device: &CudaDevice, dtype: DType, head_size: usize, pass: Pass) -> Result<Self> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let most = device.cuda_stream().context().attribute(attribute).w()? as usize;
        let found = if dtype == DType::BF16 { Self::bf16(head_size, pass) } else { Self::f32(head_size, pass, most) };
        let Some(found) = found.filter(|found| found.shared_bytes as usize <= most) else {
            bail!(
                "heads of {head_size} in {dtype:?} do not fit the {most} bytes of shared memory of this GPU; set {}",
                if dtype == DType::BF16 { "the device to cpu" } else { "model.torch_dtype=bfloat16" }
            );
        };
        Ok(found)
    }

    /// The tiles that attention_bf16.cuh is written for; none if a head is wider than 256.
    fn bf16(head_size: usize, pass: Pass) -> Option<Self> {
        const ROWS: usize = 64;
        let width = [64, 128, 256].into_iter().find(|&width| head_size <= width)?;
        let (stages, others, parts) = match (width, pass) {
            (256, Pass::Forward) => (1, 64, 1),
            (256, _) => (1, 16, 2),
            (_, Pass::Forward) | (64, _) => (2, 64, 1),
            _ => (2, 32, 1),
        };
        let own = if pass == Pass::Forward { ROWS } else { 2 * ROWS };
        // The pass over keys has two numbers of each query besides.
        let numbers = if pass == Pass::Keys { stages * 2 * others * size_of::<f32>() } else { 0 };
        let shared_bytes = (own + stages * 2 * others) * (width + 8) * size_of::<half::bf16>() + numbers;
        let threads = ROWS as u32 / 16 * WARP;
        let variant = Variant { dtype: DType::BF16, width };
        Some(Self { variant, rows: ROWS, threads, shared_bytes: shared_bytes as u32, parts })
    }

    /// The shared memory that attention.cu lays out. Takes the largest tile of which two blocks fit on a
    /// multiprocessor, or else the largest that fits.
    fn f32(head_size: usize, pass: Pass, most: usize) -> Option<Self> {
        let bytes = |tile| {
            // Rows of so many numbers, and four more.
            let part = |rows: usize, columns: usize| 4 * rows * (columns + 4);
            let (wide, square) = (part(tile, head_size), part(tile, tile));
            match pass {
                Pass::Forward => 4 * wide + 2 * square + part(1, 2 * tile),
                Pass::Queries => 5 * wide + 3 * square,
                Pass::Keys => 6 * wide + 4 * square,
            }
        };
        // The driver keeps 1 KiB of a multiprocessor for each block, and `most` leaves out one: two blocks share
        // most + 1024 bytes, less 1024 each.
        let half = most / 2 - 512;
        let fits = [half, most].into_iter();
        let rows =
            fits.flat_map(|most| [64, 32, 16].map(|tile| (tile, most))).find(|&(tile, most)| bytes(tile) <= most);
        let (rows, _) = rows?;
        let variant = Variant { dtype: DType::F32, width: 0 };
        Some(Self { variant, rows, threads: THREADS, shared_bytes: bytes(rows) as u32, parts: 1 })
    }
}
