//! Grouped-query attention over unpadded sequences: `softmax(scale · q kᵀ) v`, causal or full.
//!
//! Sequences lie end to end; each is attended on its own, so there is nothing to mask but the
//! future. The forward saves one number a query and head, the log of the sum of its exponentials
//! (Dao, 2023, "FlashAttention-2"); the backward computes the scores again from it.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::dropout::{Dropout, threshold};
use super::rows_of;
use super::tape::{Tape, Value};
use crate::kernels::buffer::{elements, scratch, tensor};
use crate::kernels::cpu::gemm::{Matrix, MatrixMut, matmul};
use crate::kernels::cpu::math::{dot, exp, simd, tanh};
use crate::rng::Stream;

/// Heads and who sees whom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionKind {
    /// H, heads of the queries.
    pub heads: usize,
    /// K, heads of keys and values; divides H.
    pub key_value_heads: usize,
    /// d, the width of a head.
    pub head_size: usize,
    /// A token sees itself and earlier ones only.
    pub is_causal: bool,
    /// Of those, this many at most, itself included; without `is_causal`, those less than this far away
    /// on either side.
    pub window: Option<usize>,
    /// Multiplies the scores: usually 1/√d.
    pub scale: f32,
    /// Scores are bent below this: `c · tanh(score / c)`.
    pub soft_cap: Option<f32>,
    /// Probabilities that are left out while training.
    pub dropout: Dropout,
}

/// Where sequences start, and which of their tokens ask.
#[derive(Clone, Debug)]
pub struct Sequences {
    /// B + 1 entries: sequence b has the rows `offsets[b] .. offsets[b + 1]` of keys and values.
    pub offsets: Vec<usize>,
    /// `None`: every token. Else one token a sequence, by its row.
    pub queries: Option<Rc<[u32]>>,
}

impl Sequences {
    /// Rows of q: where each sequence's queries start, B + 1 entries.
    fn query_offsets(&self) -> Vec<usize> {
        match &self.queries {
            None => self.offsets.clone(),
            Some(queries) => (0..=queries.len()).collect(),
        }
    }

    /// The position in its sequence of the first query of sequence `b`; the others follow it.
    fn first_position(&self, b: usize) -> usize {
        self.queries.as_ref().map_or(0, |queries| queries[b] as usize - self.offsets[b])
    }
}

/// Queries handled together: their scores against 2,048 keys take 256 KiB.
const TILE: usize = 32;

thread_local! {
    static SCORES: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Attends: `q` `(Q, H·d)`, `k` and `v` `(N, K·d)` give `(Q, H·d)`.
///
/// # Errors
/// If the shapes do not fit `kind` and `sequences`.
pub fn attention(tape: &Tape, [q, k, v]: [&Value; 3], kind: AttentionKind, sequences: &Rc<Sequences>) -> Result<Value> {
    let plan = Plan::new([q, k, v], kind, sequences, kind.dropout.stream(tape.dropout()))?;
    #[cfg(feature = "cuda")]
    if q.tensor().device().is_cuda() {
        return crate::kernels::cuda::attention::attention(tape, [q, k, v], plan);
    }
    let mut output = scratch(plan.queries * plan.query_width());
    let mut log_sums = scratch(plan.queries * kind.heads);
    {
        let inputs = [&*elements(q.tensor())?, &*elements(k.tensor())?, &*elements(v.tensor())?];
        let outputs = MatrixMut::new(&mut output, plan.queries, plan.query_width(), plan.query_width())
            .grid(&plan.query_offsets[1..], plan.group() * kind.head_size);
        let log_sums = MatrixMut::new(&mut log_sums, plan.queries, kind.heads, kind.heads)
            .grid(&plan.query_offsets[1..], plan.group());
        let tasks: Vec<_> = outputs.into_iter().zip(log_sums).enumerate().collect();
        tasks.into_par_iter().with_max_len(1).for_each(|(task, (mut output, mut log_sums))| {
            plan.forward(task, inputs, &mut output, &mut log_sums);
        });
    }
    let output = tensor(output, (plan.queries, plan.query_width()))?;
    let gradients = [q.gradient(), k.gradient(), v.gradient()];
    if gradients.iter().all(Option::is_none) {
        return Ok(Value::constant(output));
    }
    let saved = [q, k, v].map(|value| value.tensor().clone());
    let saved_output = output.clone();
    Ok(tape.record(output, move |incoming| {
        let [q, k, v] = &saved;
        let mut written = saved.each_ref().map(|tensor| scratch(tensor.elem_count()));
        {
            let (q, k, v) = (elements(q)?, elements(k)?, elements(v)?);
            let (output, incoming) = (elements(&saved_output)?, elements(&incoming)?);
            let back = BackwardInputs { qkv: [&q, &k, &v], output: &output, incoming: &incoming, log_sums: &log_sums };
            let [gq, gk, gv] = &mut written;
            let (query_width, key_width) = (plan.query_width(), plan.key_width());
            let gq = MatrixMut::new(gq, plan.queries, query_width, query_width)
                .grid(&plan.query_offsets[1..], plan.group() * kind.head_size);
            let keys =
                |g| MatrixMut::new(g, plan.tokens, key_width, key_width).grid(&plan.offsets[1..], kind.head_size);
            let tasks: Vec<_> = gq.into_iter().zip(keys(gk)).zip(keys(gv)).enumerate().collect();
            tasks.into_par_iter().with_max_len(1).for_each(|(task, ((gq, gk), gv))| {
                plan.backward(task, &back, [gq, gk, gv]);
            });
        }
        for ((gradient, written), tensor_of) in gradients.iter().zip(written).zip(&saved) {
            if let Some(gradient) = gradient {
                gradient.add(Rc::new(tensor(written, tensor_of.shape().clone())?))?;
            }
        }
        Ok(())
    }))
}

/// Shapes, and the tasks: one for each sequence and key head, with its group of query heads.
pub(crate) struct Plan {
    pub(crate) kind: AttentionKind,
    pub(crate) offsets: Vec<usize>,
    pub(crate) query_offsets: Vec<usize>,
    pub(crate) first_positions: Vec<usize>,
    pub(crate) queries: usize,
    pub(crate) tokens: usize,
    /// Draws which probabilities are kept, if not all are.
    pub(crate) mask: Option<Stream>,
}

struct BackwardInputs<'a> {
    qkv: [&'a [f32]; 3],
    output: &'a [f32],
    incoming: &'a [f32],
    log_sums: &'a [f32],
}

/// Some queries of one head, and the keys that they may see.
struct Tile {
    /// First row of q, and how many.
    query: usize,
    queries: usize,
    /// The position of the first query in its sequence.
    position: usize,
    /// First row of k and v, its position in its sequence, and how many rows are seen by any query of
    /// the tile.
    key: usize,
    first_key: usize,
    keys: usize,
    head: usize,
    key_head: usize,
}

impl Plan {
    fn new([q, k, v]: [&Value; 3], kind: AttentionKind, sequences: &Sequences, mask: Option<Stream>) -> Result<Self> {
        let AttentionKind { heads, key_value_heads, head_size, .. } = kind;
        if key_value_heads == 0 || heads % key_value_heads != 0 {
            bail!("{heads} heads do not share {key_value_heads} key heads");
        }
        let queries = rows_of(q.tensor(), heads * head_size)?;
        let tokens = rows_of(k.tensor(), key_value_heads * head_size)?;
        let query_offsets = sequences.query_offsets();
        let count = sequences.offsets.len().saturating_sub(1);
        let fits = rows_of(v.tensor(), key_value_heads * head_size)? == tokens
            && sequences.offsets.first() == Some(&0)
            && sequences.offsets.windows(2).all(|pair| pair[0] < pair[1])
            && sequences.offsets.last() == Some(&tokens)
            && query_offsets.len() == count + 1
            && query_offsets.last() == Some(&queries)
            && sequences.queries.as_ref().is_none_or(|queries| {
                (0..count).all(|b| (sequences.offsets[b]..sequences.offsets[b + 1]).contains(&(queries[b] as usize)))
            });
        if !fits {
            bail!("attention of {queries} queries over {tokens} tokens does not fit its sequences");
        }
        let first_positions = (0..count).map(|b| sequences.first_position(b)).collect();
        Ok(Self { kind, offsets: sequences.offsets.clone(), query_offsets, first_positions, queries, tokens, mask })
    }

    fn query_width(&self) -> usize {
        self.kind.heads * self.kind.head_size
    }

    fn key_width(&self) -> usize {
        self.kind.key_value_heads * self.kind.head_size
    }

    /// Query heads that share one key head.
    fn group(&self) -> usize {
        self.kind.heads / self.kind.key_value_heads
    }

    /// The tiles of one task, head by head.
    fn tiles(&self, task: usize) -> impl Iterator<Item = Tile> + '_ {
        let (b, key_head) = (task / self.kind.key_value_heads, task % self.kind.key_value_heads);
        let length = self.offsets[b + 1] - self.offsets[b];
        let queries = self.query_offsets[b + 1] - self.query_offsets[b];
        (0..self.group()).flat_map(move |member| {
            (0..queries).step_by(TILE).map(move |start| {
                let count = TILE.min(queries - start);
                let position = self.first_positions[b] + start;
                let first_key = self.first_seen(position);
                let end = self.end_of_seen(position + count - 1, length);
                Tile {
                    query: self.query_offsets[b] + start,
                    queries: count,
                    position,
                    key: self.offsets[b] + first_key,
                    first_key,
                    keys: end - first_key,
                    head: key_head * self.group() + member,
                    key_head,
                }
            })
        })
    }

    /// The tile's rows of a matrix with all query heads side by side.
    fn of_queries<'a>(&self, data: &'a [f32], tile: &Tile) -> Matrix<'a> {
        let start = tile.query * self.query_width() + tile.head * self.kind.head_size;
        Matrix::new(&data[start..], tile.queries, self.kind.head_size, self.query_width())
    }

    /// The tile's rows of a matrix with all key heads side by side.
    fn of_keys<'a>(&self, data: &'a [f32], tile: &Tile) -> Matrix<'a> {
        let start = tile.key * self.key_width() + tile.key_head * self.kind.head_size;
        Matrix::new(&data[start..], tile.keys, self.kind.head_size, self.key_width())
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

    /// Which of the tile's keys its query `row` sees.
    fn seen(&self, tile: &Tile, row: usize) -> Range<usize> {
        let position = tile.position + row;
        let end = self.end_of_seen(position, tile.first_key + tile.keys);
        self.first_seen(position) - tile.first_key..end - tile.first_key
    }

    /// The factors of a query's probabilities, if some are left out: 0, or 1 / (1 − p).
    ///
    /// The element of the mask is that of a matrix with a row for each query and head and a column for
    /// each token of the batch.
    fn kept(&self, tile: &Tile, row: usize, seen: &Range<usize>, factors: &mut Vec<f32>) -> bool {
        let Some(mask) = &self.mask else { return false };
        let element = ((tile.query + row) * self.kind.heads + tile.head) * self.tokens + tile.key + seen.start;
        draw_factors(factors, mask, element as u64, seen.len(), self.kind.dropout.p);
        true
    }

    fn forward(&self, task: usize, [q, k, v]: [&[f32]; 3], output: &mut MatrixMut<'_>, log_sums: &mut MatrixMut<'_>) {
        let (d, b) = (self.kind.head_size, task / self.kind.key_value_heads);
        for tile in self.tiles(task) {
            let (row, member) = (tile.query - self.query_offsets[b], tile.head - tile.key_head * self.group());
            SCORES.with_borrow_mut(|[scores, _]| {
                scores.resize(scores.len().max(tile.queries * tile.keys), 0.0);
                let scores = &mut scores[..tile.queries * tile.keys];
                let (qs, ks) = (self.of_queries(q, &tile), self.of_keys(k, &tile).transposed());
                matmul(&mut MatrixMut::new(scores, tile.queries, tile.keys, tile.keys), false, self.kind.scale, qs, ks);
                let mut sums = [0.0; TILE];
                let mut factors = Vec::new();
                for (index, scores) in scores.chunks_exact_mut(tile.keys).enumerate() {
                    let seen = self.seen(&tile, index);
                    if let Some(cap) = self.kind.soft_cap {
                        bend(&mut scores[seen.clone()], cap);
                    }
                    let (max, sum) = exponentials(&mut scores[seen.clone()]);
                    clear_unseen(scores, &seen);
                    if self.kept(&tile, index, &seen, &mut factors) {
                        multiply(&mut scores[seen], &factors);
                    }
                    sums[index] = sum;
                    log_sums.row(row + index)[member] = max + sum.ln();
                }
                let mut block = output.block(row, tile.queries, member * d, d);
                let scores = Matrix::new(scores, tile.queries, tile.keys, tile.keys);
                matmul(&mut block, false, 1.0, scores, self.of_keys(v, &tile));
                for (index, sum) in sums[..tile.queries].iter().enumerate() {
                    for value in block.row(index) {
                        *value /= sum;
                    }
                }
            });
        }
    }

    /// With P the probabilities and δ = Σ ∂L/∂o · o: `∂L/∂S = P ∘ (∂L/∂o vᵀ − δ)`.
    fn backward(&self, task: usize, inputs: &BackwardInputs<'_>, [mut gq, mut gk, mut gv]: [MatrixMut<'_>; 3]) {
        let (d, b) = (self.kind.head_size, task / self.kind.key_value_heads);
        let [q, k, v] = inputs.qkv;
        for row in 0..self.offsets[b + 1] - self.offsets[b] {
            gk.row(row).fill(0.0);
            gv.row(row).fill(0.0);
        }
        for tile in self.tiles(task) {
            let (row, member) = (tile.query - self.query_offsets[b], tile.head - tile.key_head * self.group());
            SCORES.with_borrow_mut(|[scores, slopes]| {
                let size = tile.queries * tile.keys;
                scores.resize(scores.len().max(size), 0.0);
                slopes.resize(slopes.len().max(size), 0.0);
                let (scores, slopes) = (&mut scores[..size], &mut slopes[..size]);
                let view = |data| MatrixMut::new(data, tile.queries, tile.keys, tile.keys);
                let (qs, go) = (self.of_queries(q, &tile), self.of_queries(inputs.incoming, &tile));
                let (ks, vs) = (self.of_keys(k, &tile), self.of_keys(v, &tile));
                matmul(&mut view(scores), false, self.kind.scale, qs, ks.transposed());
                matmul(&mut view(slopes), false, 1.0, go, vs.transposed());
                let mut factors = Vec::new();
                for (index, (p, slope)) in
                    scores.chunks_exact_mut(tile.keys).zip(slopes.chunks_exact_mut(tile.keys)).enumerate()
                {
                    let at = (tile.query + index) * self.query_width() + tile.head * d;
                    let log_sum = inputs.log_sums[(tile.query + index) * self.kind.heads + tile.head];
                    let seen = self.seen(&tile, index);
                    clear_unseen(p, &seen);
                    clear_unseen(slope, &seen);
                    let of_output = (&inputs.incoming[at..at + d], &inputs.output[at..at + d]);
                    let (p, slope) = (&mut p[seen.clone()], &mut slope[seen.clone()]);
                    let is_masked = self.kept(&tile, index, &seen, &mut factors);
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
                let p = Matrix::new(scores, tile.queries, tile.keys, tile.keys);
                let slopes = Matrix::new(slopes, tile.queries, tile.keys, tile.keys);
                matmul(&mut gv.block(tile.first_key, tile.keys, 0, d), true, 1.0, p.transposed(), go);
                matmul(&mut gk.block(tile.first_key, tile.keys, 0, d), true, self.kind.scale, slopes.transposed(), qs);
                matmul(&mut gq.block(row, tile.queries, member * d, d), false, self.kind.scale, slopes, ks);
            });
        }
    }
}

/// What is not seen has no weight.
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
fn draw_factors(factors: &mut Vec<f32>, mask: &Stream, first: u64, count: usize, p: f32) {
    const PIECE: usize = 256;
    let (threshold, scale) = (threshold(p), 1.0 / (1.0 - p));
    factors.resize(count, 0.0);
    let mut numbers = [0; PIECE];
    for (index, factors) in factors.chunks_mut(PIECE).enumerate() {
        let numbers = &mut numbers[..factors.len()];
        mask.fill(first + (PIECE * index) as u64, numbers);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, numbers};
    use crate::ops::tape::DropoutKey;

    fn kind(is_causal: bool) -> AttentionKind {
        let dropout = Dropout { p: 0.0, site: 0 };
        let (window, soft_cap) = (None, None);
        AttentionKind { heads: 6, key_value_heads: 2, head_size: 4, is_causal, window, scale: 0.7, soft_cap, dropout }
    }

    #[test]
    fn attention_passes_finite_differences() {
        let sequences = Rc::new(Sequences { offsets: vec![0, 5, 6, 9], queries: None });
        let pooled = Rc::new(Sequences { offsets: vec![0, 5, 6, 9], queries: Some(vec![4, 5, 7].into()) });
        for (is_causal, sequences, queries) in [(true, &sequences, 9), (false, &sequences, 9), (true, &pooled, 3)] {
            let q = (numbers(queries * 24, 1), (queries, 24));
            let inputs = [q, (numbers(9 * 8, 2), (9, 8)), (numbers(9 * 8, 3), (9, 8))];
            for (window, soft_cap) in [(None, None), (Some(3), None), (None, Some(0.8))] {
                let kind = AttentionKind { window, soft_cap, ..kind(is_causal) };
                check(&inputs, |tape, x| attention(tape, [&x[0], &x[1], &x[2]], kind, sequences));
            }
        }
    }

    /// The mask is a function of its key, so the loss under one key is a smooth function of the inputs.
    #[test]
    fn attention_with_dropout_passes_finite_differences() {
        let key = DropoutKey { seed: 4, micro_batch: 9 };
        let sequences = Rc::new(Sequences { offsets: vec![0, 40, 43], queries: None });
        let kind = AttentionKind { dropout: Dropout { p: 0.4, site: 2 }, ..kind(false) };
        let data = [(numbers(43 * 24, 1), 24), (numbers(43 * 8, 2), 8), (numbers(43 * 8, 3), 8)];
        let run = |data: &[(Vec<f32>, usize)], key: Option<DropoutKey>| {
            let tape = Tape::recording(key);
            let (values, gradients): (Vec<_>, Vec<_>) =
                data.iter().map(|(data, width)| Value::leaf(tensor(data.clone(), (43, *width)).unwrap())).unzip();
            let output = attention(&tape, [&values[0], &values[1], &values[2]], kind, &sequences).unwrap();
            let weights = numbers(43 * 24, 99);
            let loss: f64 = elements(output.tensor())
                .unwrap()
                .iter()
                .zip(&weights)
                .map(|(y, w)| f64::from(*y) * f64::from(*w))
                .sum();
            tape.backward(&output, tensor(weights, (43, 24)).unwrap()).unwrap();
            let gradients: Vec<Vec<f32>> =
                gradients.iter().map(|g| elements(&g.take().unwrap()).unwrap().to_vec()).collect();
            (loss, gradients)
        };
        let (loss, gradients) = run(&data, Some(key));
        assert_ne!(loss, run(&data, None).0);
        for (input, element) in [(0, 5), (0, 700), (1, 3), (1, 250), (2, 17), (2, 330)] {
            let mut moved = data.clone();
            moved[input].0[element] += 4e-3;
            let up = run(&moved, Some(key)).0;
            moved[input].0[element] -= 8e-3;
            let difference = (up - run(&moved, Some(key)).0) / 8e-3;
            let found = f64::from(gradients[input][element]);
            assert!((found - difference).abs() < 2e-3 * (1.0 + difference.abs()), "{found}, expected {difference}");
        }
    }

    /// Longer than a tile, against the definition.
    #[test]
    fn attention_matches_the_definition_over_many_tiles() {
        let (tokens, offsets) = (83, vec![0, 70, 83]);
        let (q, k, v) = (numbers(tokens * 24, 1), numbers(tokens * 8, 2), numbers(tokens * 8, 3));
        let sequences = Rc::new(Sequences { offsets: offsets.clone(), queries: None });
        let value = |data: &[f32], width| Value::constant(tensor(data.to_vec(), (tokens, width)).unwrap());
        let inputs = [value(&q, 24), value(&k, 8), value(&v, 8)];
        let [qv, kv, vv] = &inputs;
        for (is_causal, window) in
            [(true, None), (true, Some(5)), (true, Some(40)), (false, None), (false, Some(6)), (false, Some(33))]
        {
            let kind = AttentionKind { window, ..kind(is_causal) };
            let output = attention(&Tape::off(), [qv, kv, vv], kind, &sequences).unwrap();
            let output = elements(output.tensor()).unwrap();
            for i in 0..tokens {
                let start = if i < 70 { 0 } else { 70 };
                let last = match (is_causal, window) {
                    (true, _) => i,
                    (false, None) => {
                        if i < 70 {
                            69
                        } else {
                            82
                        }
                    }
                    (false, Some(window)) => (i + window - 1).min(if i < 70 { 69 } else { 82 }),
                };
                let start = window.map_or(start, |window: usize| start.max((i + 1).saturating_sub(window)));
                for head in 0..6 {
                    let scores: Vec<f64> = (start..=last)
                        .map(|j| {
                            let score: f32 =
                                (0..4).map(|c| q[i * 24 + head * 4 + c] * k[j * 8 + head / 3 * 4 + c]).sum();
                            f64::from(0.7 * score).exp()
                        })
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    for c in 0..4 {
                        let expected: f64 = (start..=last)
                            .zip(&scores)
                            .map(|(j, p)| p / sum * f64::from(v[j * 8 + head / 3 * 4 + c]))
                            .sum();
                        assert!((f64::from(output[i * 24 + head * 4 + c]) - expected).abs() < 1e-5);
                    }
                }
            }
        }
    }
}
