//! Attention over unpadded sequences: see `attention.cu`.

use std::rc::Rc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, sys};
use candle_core::{CudaDevice, DType, Result, Tensor, bail};

use super::{Arg, Grid, WARP, address, address_of, args, device_of, kernel, launch, scratch};
use crate::kernels::cpu::flops;
use crate::ops::attention::{AttentionKind, Plan};
use crate::ops::dropout::threshold;
use crate::ops::tape::{Tape, Value};

/// Threads of a block of the attention kernels: eight warps.
const THREADS: u32 = 256;
/// Numbers of a sum that the registers of a block hold in bf16: `Sums` in attention.cu.
const MOST_SUMMED: usize = 4 * 16 * 16 * (THREADS / WARP) as usize;

/// As `ops::attention`, whose `plan` has checked the shapes.
pub(crate) fn attention(tape: &Tape, [q, k, v]: [&Value; 3], plan: Plan) -> Result<Value> {
    let device = device_of(q.tensor())?;
    let dtype = q.tensor().dtype();
    let work = Work::new(device, dtype, plan)?;
    let output = scratch(&work.device, dtype, q.tensor().shape())?;
    let log_sums = scratch(&work.device, DType::F32, (work.plan.queries, work.plan.kind.heads))?;
    let [of_q, of_k, of_v] = [address(q.tensor())?, address(k.tensor())?, address(v.tensor())?];
    work.launch("attention", Pass::Forward, args![address(&output)?, address(&log_sums)?, of_q, of_k, of_v])?;
    let gradients = [q.gradient(), k.gradient(), v.gradient()];
    if gradients.iter().all(Option::is_none) {
        return Ok(Value::constant(output));
    }
    let [q, k, v] = [q, k, v].map(|value| value.tensor().clone());
    let saved = output.clone();
    Ok(tape.record(output, move |incoming| {
        let deltas = work.deltas(&incoming, &saved)?;
        let [of_g, of_q, of_k, of_v] = [address(&incoming)?, address(&q)?, address(&k)?, address(&v)?];
        let shared = [of_g, of_q, of_k, of_v, address(&log_sums)?, address(&deltas)?].map(Arg::from);
        if let Some(gradient) = &gradients[0] {
            let of_queries = scratch(&work.device, dtype, q.shape())?;
            work.launch("attention_backward_q", Pass::Queries, &[args![address(&of_queries)?], &shared[..]].concat())?;
            gradient.add(Rc::new(of_queries))?;
        }
        if gradients[1].is_none() && gradients[2].is_none() {
            return Ok(());
        }
        let [of_keys, of_values] = [scratch(&work.device, dtype, k.shape())?, scratch(&work.device, dtype, v.shape())?];
        let outputs = args![address(&of_keys)?, address(&of_values)?];
        work.launch("attention_backward_kv", Pass::Keys, &[outputs, &shared[..]].concat())?;
        for (gradient, written) in gradients[1..].iter().zip([of_keys, of_values]) {
            if let Some(gradient) = gradient {
                gradient.add(Rc::new(written))?;
            }
        }
        Ok(())
    }))
}

/// What a kernel goes over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Queries,
    Keys,
}

/// The shapes of one attention, on the CPU and on the GPU.
struct Work {
    device: CudaDevice,
    dtype: DType,
    plan: Plan,
    /// Five numbers a sequence: `Sequence` in attention.cu.
    sequences: CudaSlice<u32>,
}

impl Work {
    fn new(device: CudaDevice, dtype: DType, plan: Plan) -> Result<Self> {
        let sequences: Vec<u32> = (0..plan.first_positions.len())
            .flat_map(|b| {
                let (query, key) = (plan.query_offsets[b], plan.offsets[b]);
                let (queries, length) = (plan.query_offsets[b + 1] - query, plan.offsets[b + 1] - key);
                [query, queries, plan.first_positions[b], key, length].map(|number| number as u32)
            })
            .collect();
        let sequences = device.clone_htod(&sequences)?;
        Ok(Self { device, dtype, plan, sequences })
    }

    /// Σ ∂L/∂o · o of each query and head.
    fn deltas(&self, incoming: &Tensor, output: &Tensor) -> Result<Tensor> {
        let count = self.plan.queries * self.plan.kind.heads;
        let deltas = scratch(&self.device, DType::F32, count)?;
        launch(
            &self.device,
            &kernel("attention_deltas", self.dtype)?,
            Grid::warp_each(count),
            args![address(&deltas)?, address(incoming)?, address(output)?, count, self.plan.kind.head_size as u32],
        )?;
        Ok(deltas)
    }

    /// Counts the work of `products` matrix products over what the queries see.
    fn count(&self, products: usize) {
        let AttentionKind { heads, head_size, is_causal, .. } = self.plan.kind;
        let sequences = self.plan.offsets.windows(2).zip(self.plan.query_offsets.windows(2));
        let pairs: usize = sequences
            .map(|(keys, queries)| {
                let (queries, keys) = (queries[1] - queries[0], keys[1] - keys[0]);
                if is_causal && queries == keys { keys * (keys + 1) / 2 } else { queries * keys }
            })
            .sum();
        flops::count(products * heads, head_size, pairs);
    }

    /// Queues a kernel over tiles of queries or of keys.
    fn launch(&self, name: &str, pass: Pass, first: &[Arg]) -> Result<()> {
        // The scores are computed in each pass, their gradient in both of the backward.
        self.count(match pass {
            Pass::Forward => 2,
            Pass::Queries => 3,
            Pass::Keys => 4,
        });
        let AttentionKind { heads, key_value_heads, head_size, is_causal, window, scale, soft_cap, dropout } =
            self.plan.kind;
        let (tile, shared_bytes) = self.tile(pass)?;
        let offsets = if pass == Pass::Keys { &self.plan.offsets } else { &self.plan.query_offsets };
        let tiles: Vec<u32> = offsets
            .windows(2)
            .enumerate()
            .flat_map(|(b, pair)| (0..pair[1] - pair[0]).step_by(tile).flat_map(move |start| [b as u32, start as u32]))
            .collect();
        let held_tiles = self.device.clone_htod(&tiles)?;
        let blocks = (tiles.len() as u32 / 2, if pass == Pass::Keys { key_value_heads } else { heads } as u32);
        let [seed, site, step, purpose] = self.plan.mask.map_or([0; 4], |mask| mask.words());
        let (kept_from, kept_scale) = match self.plan.mask {
            Some(_) => (threshold(dropout.p), 1.0 / (1.0 - dropout.p)),
            None => (0, 0.0),
        };
        let shape = args![
            address_of(&self.sequences),
            address_of(&held_tiles),
            heads as u32,
            key_value_heads as u32,
            head_size as u32,
            self.plan.tokens as u32,
            tile as u32,
            u32::from(is_causal),
            window.map_or(0, |window| u32::try_from(window).unwrap_or(u32::MAX / 2)),
            scale,
            soft_cap.unwrap_or(0.0),
            seed,
            site,
            step,
            purpose,
            kept_from,
            kept_scale
        ];
        let grid = Grid { blocks, threads: THREADS, shared_bytes };
        launch(&self.device, &kernel(name, self.dtype)?, grid, &[first, shape].concat())
    }

    /// Rows of a tile whose sums fit into registers, and the shared memory that it takes: the largest of which
    /// two blocks fit on a multiprocessor, else the largest that fits at all.
    fn tile(&self, pass: Pass) -> Result<(usize, u32)> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let most = self.device.cuda_stream().context().attribute(attribute).w()? as usize;
        let head_size = self.plan.kind.head_size;
        let bytes = |tile| shared_bytes(pass, tile, head_size, self.dtype.size_in_bytes());
        let fits = |tile, most| bytes(tile) <= most && tile * head_size.next_multiple_of(16) <= MOST_SUMMED;
        // The driver keeps 1 KiB of a multiprocessor for each block, and `most` leaves out one: two blocks share
        // most + 1024 bytes, less 1024 each.
        let half = most / 2 - 512;
        let found = [half, most].iter().find_map(|&most| [64, 32, 16].into_iter().find(|&tile| fits(tile, most)));
        let Some(tile) = found else {
            bail!(
                "heads of {head_size} in {:?} do not fit the {most} bytes of shared memory of this GPU; set \
                 model.torch_dtype=bfloat16",
                self.dtype
            );
        };
        Ok((tile, bytes(tile) as u32))
    }
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
