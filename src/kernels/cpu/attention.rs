//! Attention in tiles of queries, a task for each sequence and key head, which packs keys and values once.

use std::cell::Cell;
use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::gemm::{ALIGNMENT, Matrix, MatrixMut, NewMatrix, Reused, matmul};
use super::math::{dot, exp, simd, tanh};
use super::relative::{Block, OfHead, Slopes, Tables, sum_tables};
use crate::kernels::attention::Plan;
use crate::kernels::buffer::{elements, tensor};
use crate::kernels::mask::Choice;

/// Queries handled together: a panel or two of the products, whose scores stay in L1 or L2.
const PANEL: usize = 12;
/// Queries whose gradients reach keys and values together: their scores against 2,048 keys take 576 KiB.
const TILE: usize = 6 * PANEL;

/// Buffers of a task, kept for the thread's next task.
struct Scratch {
    keys: Reused,
    values: Reused,
    /// Keys, packed for the gradient of queries.
    key_rows: Reused,
    scores: Vec<f32>,
    slopes: Vec<f32>,
}

impl Scratch {
    const EMPTY: Self = Self {
        keys: Reused::EMPTY,
        values: Reused::EMPTY,
        key_rows: Reused::EMPTY,
        scores: Vec::new(),
        slopes: Vec::new(),
    };
}

impl Default for Scratch {
    fn default() -> Self {
        Self::EMPTY
    }
}

thread_local! {
    static SCRATCH: Cell<Scratch> = const { Cell::new(Scratch::EMPTY) };
}

/// Attends: `q` `(Q, H·d)`, `k` and `v` `(N, K·d)` give `(Q, H·d)`, and of each query and head the log of
/// the sum of its exponentials.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, plan: &Plan) -> Result<(Tensor, Tensor)> {
    let (heads, width) = (plan.kind.heads, plan.query_width());
    let mut output = NewMatrix::new(plan.queries, width);
    let mut log_sums = vec![0.0; plan.queries * heads];
    let inputs = [&*elements(q)?, &*elements(k)?, &*elements(v)?];
    let tables = Tables::of(plan)?;
    // SAFETY: `forward` overwrites each tile of each head by a product before it reads it.
    #[expect(unsafe_code, reason = "an output is written once, by all cores")]
    let outputs = unsafe { output.view() }.grid(&plan.query_offsets[1..], plan.group() * plan.kind.head_size);
    let sums = MatrixMut::new(&mut log_sums, plan.queries, heads, heads).grid(&plan.query_offsets[1..], plan.group());
    let tasks: Vec<_> = outputs.into_iter().zip(sums).enumerate().collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(task, (mut output, mut sums))| {
        plan.forward(task, inputs, tables.as_ref(), &mut output, &mut sums);
    });
    // SAFETY: a plan's sequences have all queries, and its tasks all heads.
    #[expect(unsafe_code, reason = "an output is written once, by all cores")]
    let output = unsafe { output.finish() };
    Ok((tensor(output, (plan.queries, width))?, tensor(log_sums, (plan.queries, heads))?))
}

/// The gradients of q, k, v and the tables of [`Relative`]; all are computed, whichever are wanted.
///
/// [`Relative`]: crate::kernels::attention::Relative
pub(crate) fn attention_backward(
    g: &Tensor,
    qkv: &[Tensor; 3],
    output: &Tensor,
    log_sums: &Tensor,
    plan: &Plan,
    _wanted: [bool; 5],
) -> Result<[Option<Tensor>; 5]> {
    let [q, k, v] = qkv.each_ref().map(elements);
    let (q, k, v, output, g, log_sums) = (q?, k?, v?, elements(output)?, elements(g)?, elements(log_sums)?);
    let tables = Tables::of(plan)?;
    let inputs = BackwardInputs {
        qkv: [&q, &k, &v],
        output: &output,
        incoming: &g,
        log_sums: &log_sums,
        tables: tables.as_ref(),
    };
    let (query_width, key_width, head_size) = (plan.query_width(), plan.key_width(), plan.kind.head_size);
    let (rows, heads) = (&plan.query_offsets[1..], plan.group() * head_size);
    let mut of_q = NewMatrix::new(plan.queries, query_width);
    let [mut of_k, mut of_v] = [(); 2].map(|()| NewMatrix::new(plan.tokens, key_width));
    // SAFETY: `backward` overwrites each tile of q by a product, and clears its keys and values first.
    #[expect(unsafe_code, reason = "an output is written once, by all cores")]
    let (gq, gk, gv) = unsafe { (of_q.view(), of_k.view(), of_v.view()) };
    let [gk, gv] = [gk, gv].map(|sums| sums.grid(&plan.offsets[1..], head_size));
    let tasks: Vec<_> = gq.grid(rows, heads).into_iter().zip(gk).zip(gv).enumerate().collect();
    let of_tables: Vec<_> = tasks
        .into_par_iter()
        .with_max_len(1)
        .map(|(task, ((gq, gk), gv))| plan.backward(task, &inputs, [gq, gk, gv]))
        .collect();
    // SAFETY: a plan's sequences have all queries and all tokens, and its tasks all heads.
    #[expect(unsafe_code, reason = "an output is written once, by all cores")]
    let [of_q, of_k, of_v] = unsafe { [of_q.finish(), of_k.finish(), of_v.finish()] };
    let new = |data, like: &Tensor| tensor(data, like.shape().clone()).map(Some);
    let [of_keys, of_queries] = sum_tables(plan, &of_tables.into_iter().flatten().collect::<Vec<_>>())?;
    Ok([new(of_q, &qkv[0])?, new(of_k, &qkv[1])?, new(of_v, &qkv[2])?, of_keys, of_queries])
}

struct BackwardInputs<'a> {
    qkv: [&'a [f32]; 3],
    output: &'a [f32],
    incoming: &'a [f32],
    log_sums: &'a [f32],
    tables: Option<&'a Tables<'a>>,
}

/// Some queries of one head, and the keys that any of them may see.
struct Tile {
    /// First row of q, and how many.
    query: usize,
    queries: usize,
    /// The position of the first query in its sequence.
    position: usize,
    /// First row of k and v, its position in its sequence, and how many rows.
    key: usize,
    first_key: usize,
    keys: usize,
    head: usize,
    key_head: usize,
}

impl Tile {
    fn block(&self) -> Block {
        Block { queries: self.queries, position: self.position, first_key: self.first_key, keys: self.keys }
    }

    /// The keys' positions in their sequence.
    fn positions(&self) -> Range<usize> {
        self.first_key..self.first_key + self.keys
    }
}

/// Parts of `count`, as equal as they can be, of at most `most`.
fn parts(count: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let number = count.div_ceil(most);
    (0..number).map(move |part| part * count / number..(part + 1) * count / number)
}

impl Plan {
    /// The tiles of one task, head by head, of at most `most` queries.
    fn tiles(&self, task: usize, most: usize) -> impl Iterator<Item = Tile> + '_ {
        let (b, key_head) = (task / self.kind.key_value_heads, task % self.kind.key_value_heads);
        let queries = self.query_offsets[b + 1] - self.query_offsets[b];
        (0..self.group()).flat_map(move |member| {
            parts(queries, most).map(move |part| self.tile(b, key_head * self.group() + member, key_head, part))
        })
    }

    /// Some queries of sequence `b`.
    fn tile(&self, b: usize, head: usize, key_head: usize, queries: Range<usize>) -> Tile {
        let length = self.offsets[b + 1] - self.offsets[b];
        let position = self.first_positions[b] + queries.start;
        // Packed keys are taken from whole strips on.
        let first_key = self.first_seen(position) / ALIGNMENT * ALIGNMENT;
        let end = self.end_of_seen(position + queries.len() - 1, length);
        Tile {
            query: self.query_offsets[b] + queries.start,
            queries: queries.len(),
            position,
            key: self.offsets[b] + first_key,
            first_key,
            keys: end - first_key,
            head,
            key_head,
        }
    }

    /// Some queries of a tile.
    fn part(&self, tile: &Tile, queries: &Range<usize>) -> Tile {
        let b = self.offsets.partition_point(|&offset| offset <= tile.key) - 1;
        let start = tile.query - self.query_offsets[b];
        self.tile(b, tile.head, tile.key_head, start + queries.start..start + queries.end)
    }

    /// The tile's rows of a matrix with all query heads side by side.
    fn of_queries<'a>(&self, data: &'a [f32], tile: &Tile) -> Matrix<'a> {
        let start = tile.query * self.query_width() + tile.head * self.kind.head_size;
        Matrix::new(&data[start..], tile.queries, self.kind.head_size, self.query_width())
    }

    /// A sequence's rows of one head of a matrix with all key heads side by side.
    fn of_keys<'a>(&self, data: &'a [f32], task: usize) -> Matrix<'a> {
        let (b, key_head) = (task / self.kind.key_value_heads, task % self.kind.key_value_heads);
        let start = self.offsets[b] * self.key_width() + key_head * self.kind.head_size;
        Matrix::new(&data[start..], self.offsets[b + 1] - self.offsets[b], self.kind.head_size, self.key_width())
    }

    /// The position of the first key that a query sees.
    fn first_seen(&self, position: usize) -> usize {
        self.kind.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The position after the last key that a query sees, in a sequence of `length`.
    fn end_of_seen(&self, position: usize, length: usize) -> usize {
        match (self.kind.is_causal, self.kind.window) {
            (true, _) => position + 1,
            (false, Some(window)) => length.min(position + window),
            (false, None) => length,
        }
    }

    /// The tile's keys that its query `row` sees.
    fn seen(&self, tile: &Tile, row: usize) -> Range<usize> {
        let position = tile.position + row;
        let end = self.end_of_seen(position, tile.first_key + tile.keys);
        self.first_seen(position) - tile.first_key..end - tile.first_key
    }

    /// The factors of a query's probabilities, if some are left out: 0, or 1 / (1 − p).
    ///
    /// The element of the mask is that of a matrix with a row for each query and head and a column for
    /// each token of the batch.
    fn draws(&self, tile: &Tile, row: usize, seen: &Range<usize>, factors: &mut Vec<f32>) -> bool {
        let Some(choice) = &self.kept else { return false };
        let element = ((tile.query + row) * self.kind.heads + tile.head) * self.tokens + tile.key + seen.start;
        draw_factors(factors, choice, element as u64, seen.len());
        true
    }

    /// What a task adds to its scores by distance.
    fn by_distance<'a>(&self, tables: Option<&'a Tables<'_>>, k: &[f32], task: usize) -> Option<OfHead<'a>> {
        let keys = self.of_keys(k, task);
        tables.map(|tables| tables.of_head(self, task % self.kind.key_value_heads, keys))
    }

    fn forward(
        &self,
        task: usize,
        [q, k, v]: [&[f32]; 3],
        tables: Option<&Tables<'_>>,
        output: &mut MatrixMut<'_>,
        log_sums: &mut MatrixMut<'_>,
    ) {
        let (d, b) = (self.kind.head_size, task / self.kind.key_value_heads);
        let by_distance = self.by_distance(tables, k, task);
        let mut scratch = SCRATCH.take();
        let Scratch { keys, values, scores, .. } = &mut scratch;
        keys.pack(self.of_keys(k, task).transposed());
        values.pack(self.of_keys(v, task));
        for tile in self.tiles(task, PANEL) {
            let (row, member) = (tile.query - self.query_offsets[b], tile.head - tile.key_head * self.group());
            let stride = row_stride(tile.keys);
            scores.resize(scores.len().max(tile.queries * stride), 0.0);
            let scores = &mut scores[..tile.queries * stride];
            let mut view = MatrixMut::new(scores, tile.queries, tile.keys, stride);
            keys.multiply(&mut view, false, self.kind.scale, self.of_queries(q, &tile), (tile.positions(), 0..d));
            if let Some(by_distance) = &by_distance {
                by_distance.add(scores, stride, self.of_queries(q, &tile), &tile.block());
            }
            let mut sums = [0.0; PANEL];
            let mut factors = Vec::new();
            for (index, scores) in scores.chunks_exact_mut(stride).enumerate() {
                let scores = &mut scores[..tile.keys];
                let seen = self.seen(&tile, index);
                if let Some(cap) = self.kind.soft_cap {
                    bend(&mut scores[seen.clone()], cap);
                }
                let (max, sum) = exponentials(&mut scores[seen.clone()]);
                clear_unseen(scores, &seen);
                if self.draws(&tile, index, &seen, &mut factors) {
                    multiply(&mut scores[seen], &factors);
                }
                sums[index] = sum;
                log_sums.row(row + index)[member] = max + sum.ln();
            }
            let mut block = output.block(row, tile.queries, member * d, d);
            let scores = Matrix::new(scores, tile.queries, tile.keys, stride);
            values.multiply(&mut block, false, 1.0, scores, (0..d, tile.positions()));
            for (index, sum) in sums[..tile.queries].iter().enumerate() {
                for value in block.row(index) {
                    *value /= sum;
                }
            }
        }
        SCRATCH.set(scratch);
    }

    /// With P the probabilities and δ = Σ ∂L/∂o · o: `∂L/∂S = P ∘ (∂L/∂o vᵀ − δ)`.
    fn backward(
        &self,
        task: usize,
        inputs: &BackwardInputs<'_>,
        [mut gq, mut gk, mut gv]: [MatrixMut<'_>; 3],
    ) -> Option<Slopes> {
        let (d, b) = (self.kind.head_size, task / self.kind.key_value_heads);
        let [q, k, v] = inputs.qkv;
        gk.clear();
        gv.clear();
        let by_distance = self.by_distance(inputs.tables, k, task);
        let mut of_tables = by_distance.as_ref().map(OfHead::slopes);
        let mut scratch = SCRATCH.take();
        let Scratch { keys, values, key_rows, scores, slopes } = &mut scratch;
        keys.pack(self.of_keys(k, task).transposed());
        values.pack(self.of_keys(v, task).transposed());
        key_rows.pack(self.of_keys(k, task));
        for tile in self.tiles(task, TILE) {
            let (row, member) = (tile.query - self.query_offsets[b], tile.head - tile.key_head * self.group());
            let size = tile.queries * tile.keys;
            scores.resize(scores.len().max(size), 0.0);
            slopes.resize(slopes.len().max(size), 0.0);
            let (scores, slopes) = (&mut scores[..size], &mut slopes[..size]);
            for rows in parts(tile.queries, PANEL) {
                let part = self.part(&tile, &rows);
                // The part may see fewer keys than the tile.
                let first = part.first_key - tile.first_key;
                let of_part = |data| {
                    MatrixMut::new(data, tile.queries, tile.keys, tile.keys)
                        .into_block(rows.clone(), first..first + part.keys)
                };
                let (qs, go) = (self.of_queries(q, &part), self.of_queries(inputs.incoming, &part));
                keys.multiply(&mut of_part(scores), false, self.kind.scale, qs, (part.positions(), 0..d));
                values.multiply(&mut of_part(slopes), false, 1.0, go, (part.positions(), 0..d));
                let start = rows.start * tile.keys + first;
                if let Some(by_distance) = &by_distance {
                    by_distance.add(&mut scores[start..], tile.keys, qs, &part.block());
                }
                for index in rows.clone() {
                    let at = index * tile.keys..(index + 1) * tile.keys;
                    self.slopes(&tile, index, &mut scores[at.clone()], &mut slopes[at], inputs);
                }
                let of_scores = Matrix::new(&slopes[start..], rows.len(), part.keys, tile.keys);
                let mut block = gq.block(row + rows.start, rows.len(), member * d, d);
                key_rows.multiply(&mut block, false, self.kind.scale, of_scores, (0..d, part.positions()));
                if let (Some(by_distance), Some(of_tables)) = (&by_distance, &mut of_tables) {
                    by_distance.add_slopes(of_tables, (&slopes[start..], tile.keys), (qs, &mut block), &part.block());
                }
            }
            let (qs, go) = (self.of_queries(q, &tile), self.of_queries(inputs.incoming, &tile));
            let p = Matrix::new(scores, tile.queries, tile.keys, tile.keys).transposed();
            let slopes = Matrix::new(slopes, tile.queries, tile.keys, tile.keys).transposed();
            matmul(&mut gv.block(tile.first_key, tile.keys, 0, d), true, 1.0, p, go);
            matmul(&mut gk.block(tile.first_key, tile.keys, 0, d), true, self.kind.scale, slopes, qs);
        }
        SCRATCH.set(scratch);
        if let (Some(by_distance), Some(of_tables)) = (&by_distance, &mut of_tables) {
            by_distance.finish(of_tables, self.of_keys(k, task), &mut gk);
        }
        of_tables
    }

    /// Turns a query's scores into what its values count, and ∂L/∂P into ∂L/∂S.
    fn slopes(&self, tile: &Tile, index: usize, p: &mut [f32], slope: &mut [f32], inputs: &BackwardInputs<'_>) {
        let d = self.kind.head_size;
        let at = (tile.query + index) * self.query_width() + tile.head * d;
        let log_sum = inputs.log_sums[(tile.query + index) * self.kind.heads + tile.head];
        let seen = self.seen(tile, index);
        clear_unseen(p, &seen);
        clear_unseen(slope, &seen);
        let of_output = (&inputs.incoming[at..at + d], &inputs.output[at..at + d]);
        let (p, slope) = (&mut p[seen.clone()], &mut slope[seen.clone()]);
        let mut factors = Vec::new();
        let is_masked = self.draws(tile, index, &seen, &mut factors);
        if is_masked {
            multiply(slope, &factors);
        }
        match self.kind.soft_cap {
            None => score_slopes(p, slope, log_sum, of_output),
            Some(cap) => bent_score_slopes(p, slope, log_sum, of_output, cap),
        }
        if is_masked {
            multiply(p, &factors);
        }
    }
}

/// Numbers from a row of scores to the next: an odd number of cache lines, so that rows do not share sets of the cache.
fn row_stride(keys: usize) -> usize {
    16 * (keys.div_ceil(16) | 1)
}

/// Unseen keys have no weight.
fn clear_unseen(scores: &mut [f32], seen: &Range<usize>) {
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
}

simd! {
/// Replaces scores by probabilities, and ∂L/∂P by ∂L/∂S; `of_output` is a row of ∂L/∂o and of o.
fn score_slopes(p: &mut [f32], slope: &mut [f32], log_sum: f32, of_output: (&[f32], &[f32])) {
    let delta = dot(of_output.0, of_output.1);
    for (p, slope) in p.iter_mut().zip(slope) {
        *p = exp(*p - log_sum);
        *slope = *p * (*slope - delta);
    }
}
}

simd! {
/// The same for bent scores: `p` holds them before they are bent.
fn bent_score_slopes(p: &mut [f32], slope: &mut [f32], log_sum: f32, of_output: (&[f32], &[f32]), cap: f32) {
    let delta = dot(of_output.0, of_output.1);
    for (p, slope) in p.iter_mut().zip(slope) {
        let t = tanh(*p / cap);
        *p = exp(cap * t - log_sum);
        *slope = *p * (*slope - delta) * (1.0 - t * t);
    }
}
}

simd! {
fn bend(scores: &mut [f32], cap: f32) {
    for score in scores {
        *score = cap * tanh(*score / cap);
    }
}
}

simd! {
fn multiply(x: &mut [f32], factors: &[f32]) {
    for (x, factor) in x.iter_mut().zip(factors) {
        *x *= factor;
    }
}
}

simd! {
/// Draws `count` factors for the elements from `first` on.
fn draw_factors(factors: &mut Vec<f32>, choice: &Choice, first: u64, count: usize) {
    const PIECE: usize = 256;
    let (threshold, scale) = (choice.threshold(), choice.scale());
    factors.resize(count, 0.0);
    let mut numbers = [0; PIECE];
    for (index, factors) in factors.chunks_mut(PIECE).enumerate() {
        let numbers = &mut numbers[..factors.len()];
        choice.stream.fill(first + (PIECE * index) as u64, numbers);
        for (factor, &number) in factors.iter_mut().zip(numbers.iter()) {
            *factor = if number >= threshold { scale } else { 0.0 };
        }
    }
}
}

simd! {
/// Replaces scores by e^(score − max); returns max and their sum.
fn exponentials(scores: &mut [f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let mut max = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            max[lane] = if chunk[lane] > max[lane] { chunk[lane] } else { max[lane] };
        }
    }
    let max = max.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0; LANES];
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - max);
            sums[lane] += chunk[lane];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for score in rest {
        *score = exp(*score - max);
        sum += *score;
    }
    (max, sum)
}
}
