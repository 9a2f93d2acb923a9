//! Attention over unpadded sequences: see `attention.cu`.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, sys};
use candle_core::{CudaDevice, DType, Result, Tensor, bail};

use super::launch::{Code, Grid, StreamWords, WARP, kernels, ptx};
use super::memory::{Activations, Address, activations, address_of, device_of, floats, scratch};
use super::relative::{Products, Side, table_gradient};
use super::shape::{Shape, tiles_of};
use crate::kernels::attention::{AttentionKind, Plan};
use crate::kernels::cpu::flops;

/// Threads of a block of the attention kernels: eight warps.
const THREADS: u32 = 256;
/// Numbers of a sum that the registers of a block hold in bf16: `Sums` in attention.cu.
const MOST_SUMMED: usize = 4 * 16 * 16 * (THREADS / WARP) as usize;

const CODE: Code = Code { name: "attention", ptx: ptx::ATTENTION };

kernels! { CODE:
    fn attention<T>(
        out: Address<Activations>, log_sums: Address<f32>, q: Address<Activations>, k: Address<Activations>,
        v: Address<Activations>, sequences: Address<u32>, tiles: Address<u32>, shape: Shape,
    );
    fn attention_deltas<T>(
        deltas: Address<f32>, g: Address<Activations>, out: Address<Activations>, n: usize, head_size: u32,
    );
    fn attention_backward_q<T>(
        gq: Address<Activations>, g: Address<Activations>, q: Address<Activations>, k: Address<Activations>,
        v: Address<Activations>, log_sums: Address<f32>, deltas: Address<f32>, sequences: Address<u32>,
        tiles: Address<u32>, shape: Shape,
    );
    fn attention_backward_kv<T>(
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
    kernel::attention(&device, dtype, work.grid, out, floats(&log_sums)?, q, k, v, sequences, tiles, work.shape)?;
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
            &device, dtype, work.grid, gq, of_g, q, k, v, sums, deltas, sequences, tiles, work.shape,
        )?;
        found[0] = Some(new);
    }
    if wanted[1] || wanted[2] {
        let work = Work::new(&device, dtype, plan, Pass::Keys, products.as_ref())?;
        let [of_keys, of_values] = [scratch(&device, dtype, qkv[1].shape())?, scratch(&device, dtype, qkv[2].shape())?];
        let (tiles, [gk, gv]) = (address_of(&work.tiles), [activations(&of_keys)?, activations(&of_values)?]);
        kernel::attention_backward_kv(
            &device, dtype, work.grid, gk, gv, of_g, q, k, v, sums, deltas, sequences, tiles, work.shape,
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
    grid: Grid,
    shape: Shape,
    /// Pairs: a sequence, and its first query or key of the tile.
    tiles: CudaSlice<u32>,
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
        let (tile, shared_bytes) = tile(device, dtype, head_size, pass)?;
        let offsets = if pass == Pass::Keys { &plan.offsets } else { &plan.query_offsets };
        let tiles = tiles_of(offsets, tile);
        let blocks = (tiles.len() as u32 / 2, if pass == Pass::Keys { key_value_heads } else { heads } as u32);
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
        Ok(Self { grid: Grid { blocks, threads: THREADS, shared_bytes }, shape, tiles: device.clone_htod(&tiles)? })
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

/// Rows of a tile whose sums fit into registers, and the shared memory that it takes: the largest of which
/// two blocks fit on a multiprocessor, else the largest that fits at all.
fn tile(device: &CudaDevice, dtype: DType, head_size: usize, pass: Pass) -> Result<(usize, u32)> {
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let most = device.cuda_stream().context().attribute(attribute).w()? as usize;
    let bytes = |tile| shared_bytes(pass, tile, head_size, dtype.size_in_bytes());
    let fits = |tile, most| bytes(tile) <= most && tile * head_size.next_multiple_of(16) <= MOST_SUMMED;
    // The driver keeps 1 KiB of a multiprocessor for each block, and `most` leaves out one: two blocks share
    // most + 1024 bytes, less 1024 each.
    let half = most / 2 - 512;
    let found = [half, most].iter().find_map(|&most| [64, 32, 16].into_iter().find(|&tile| fits(tile, most)));
    let Some(tile) = found else {
        bail!(
            "heads of {head_size} in {:?} do not fit the {most} bytes of shared memory of this GPU; set \
             model.torch_dtype=bfloat16",
            dtype
        );
    };
    Ok((tile, bytes(tile) as u32))
}

/// What the kernels of attention.cu lay out in shared memory.
fn shared_bytes(pass: Pass, tile: usize, head_size: usize, size: usize) -> usize {
    // Rows of `columns` numbers and 16 bytes; widths are multiples of 16.
    let part = |rows: usize, columns: usize, size: usize| rows * (columns * size + 16);
    let width = head_size.next_multiple_of(16);
    let (wide, square) = (part(tile, width, size), part(tile, tile, size));
    let (sums, scores) = (part(tile, width, 4), part(tile, tile, 4));
    // The backward's are in registers for bf16.
    let backward_sums = if size == 4 { sums } else { 0 };
    match pass {
        Pass::Forward => 3 * wide + square + scores + sums + part(1, 2 * tile, 4),
        Pass::Queries => 4 * wide + square + 2 * scores + backward_sums,
        Pass::Keys => 4 * wide + 2 * square + 2 * scores + 2 * backward_sums,
    }
}

const _: () = assert!(THREADS.is_multiple_of(WARP), "rows are shared among whole warps");
