//! Scores by distance in attention, and their gradients: see [`crate::kernels::attention::Relative`].
//!
//! A task has one head of one sequence. Products of all its keys with the table come first; those of its queries
//! tile by tile, while the tile's scores are in cache.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::gemm::{Matrix, MatrixMut, matmul};
use crate::kernels::attention::{Plan, Relative};
use crate::kernels::buffer::{Elements, elements, tensor};

/// The tables of an attention, readable.
pub(super) struct Tables<'a> {
    relative: &'a Relative,
    keys: Option<Elements<'a>>,
    queries: Option<Elements<'a>>,
}

impl<'a> Tables<'a> {
    pub(super) fn of(plan: &'a Plan) -> Result<Option<Self>> {
        let Some(relative) = &plan.relative else { return Ok(None) };
        let [keys, queries] = [&relative.keys, &relative.queries].map(|table| table.as_ref().map(elements).transpose());
        Ok(Some(Self { relative, keys: keys?, queries: queries? }))
    }

    /// What the head of one task adds to its scores; `keys` are the sequence's, `(n, d)`.
    pub(super) fn of_head<'s>(&'s self, plan: &Plan, head: usize, keys: Matrix<'_>) -> OfHead<'s> {
        let length = keys.rows();
        let rows = self.relative.distances.rows_within(length);
        let (d, width) = (plan.kind.head_size, plan.query_width());
        let part = |table: &'s Elements<'a>| Matrix::new(&table[rows.start * width + head * d..], rows.len(), d, width);
        let scale = plan.kind.scale;
        let mut of_keys = Vec::new();
        let of_queries = self.keys.as_ref().map(part);
        let table_of_keys = self.queries.as_ref().map(part);
        if let Some(table) = table_of_keys {
            of_keys.resize(length * rows.len(), 0.0);
            matmul(&mut view(&mut of_keys, length, rows.len()), false, scale, keys, table.transposed());
        }
        OfHead {
            relative: self.relative,
            rows,
            head,
            heads: plan.kind.heads,
            scale,
            of_queries,
            table_of_keys,
            of_keys,
        }
    }
}

fn view(data: &mut [f32], rows: usize, columns: usize) -> MatrixMut<'_> {
    MatrixMut::new(data, rows, columns, columns)
}

/// What one head of one sequence adds to its scores.
pub(super) struct OfHead<'a> {
    relative: &'a Relative,
    /// Rows of the tables within the sequence's reach.
    rows: Range<usize>,
    head: usize,
    heads: usize,
    scale: f32,
    /// What queries are multiplied by, and keys: `(rows, d)`.
    of_queries: Option<Matrix<'a>>,
    table_of_keys: Option<Matrix<'a>>,
    /// Scaled products of the keys, `(n, rows)`.
    of_keys: Vec<f32>,
}

/// Some queries and the keys whose scores they have.
pub(super) struct Block {
    pub(super) queries: usize,
    /// The position of the first query, and of the first key, in their sequence.
    pub(super) position: usize,
    pub(super) first_key: usize,
    pub(super) keys: usize,
}

impl Block {
    /// The distance of a query from the first of the keys, as an index into the rows of distances.
    fn start(&self, relative: &Relative, row: usize) -> usize {
        relative.distances.longest + self.position + row - self.first_key
    }
}

impl OfHead<'_> {
    /// Adds to the scores `(queries, keys)` of a block, whose rows are `stride` numbers apart.
    pub(super) fn add(&self, scores: &mut [f32], stride: usize, queries: Matrix<'_>, block: &Block) {
        let count = self.rows.len();
        let mut of_queries = vec![0.0; if self.of_queries.is_some() { block.queries * count } else { 0 }];
        if let Some(table) = self.of_queries {
            let mut products = view(&mut of_queries, block.queries, count);
            matmul(&mut products, false, self.scale, queries, table.transposed());
        }
        let distances = &self.relative.distances.rows;
        for (row, scores) in scores.chunks_mut(stride).take(block.queries).enumerate() {
            let scores = &mut scores[..block.keys];
            let start = block.start(self.relative, row);
            // Distances fall as keys advance.
            let distances = distances[start + 1 - block.keys..=start].iter().rev().map(|&at| at as usize);
            if let Some(bias) = &self.relative.bias {
                for (score, at) in scores.iter_mut().zip(distances.clone()) {
                    *score += bias[at * self.heads + self.head];
                }
            }
            if !of_queries.is_empty() {
                let products = &of_queries[row * count..][..count];
                for (score, at) in scores.iter_mut().zip(distances.clone()) {
                    *score += products[at - self.rows.start];
                }
            }
            if !self.of_keys.is_empty() {
                let products = self.of_keys[block.first_key * count..].chunks_exact(count);
                for ((score, at), products) in scores.iter_mut().zip(distances).zip(products) {
                    *score += products[at - self.rows.start];
                }
            }
        }
    }

    /// Room for the gradients of a head.
    pub(super) fn slopes(&self) -> Slopes {
        let zeros = |matrix: Option<Matrix<'_>>| vec![0.0; matrix.map_or(0, |matrix| matrix.rows() * matrix.columns())];
        Slopes {
            rows: self.rows.clone(),
            of_keys: vec![0.0; self.of_keys.len()],
            tables: [zeros(self.of_queries), zeros(self.table_of_keys)],
        }
    }

    /// Takes the gradient of a block's scores: to its queries' gradient, and to what [`OfHead::finish`] needs.
    pub(super) fn add_slopes(
        &self,
        to: &mut Slopes,
        (slopes, stride): (&[f32], usize),
        (queries, of_queries): (Matrix<'_>, &mut MatrixMut<'_>),
        block: &Block,
    ) {
        let count = self.rows.len();
        let distances = &self.relative.distances.rows;
        let mut by_row = vec![0.0; if self.of_queries.is_some() { block.queries * count } else { 0 }];
        for (row, slopes) in slopes.chunks(stride).take(block.queries).enumerate() {
            let slopes = &slopes[..block.keys];
            let start = block.start(self.relative, row);
            let distances = distances[start + 1 - block.keys..=start].iter().rev().map(|&at| at as usize);
            if !by_row.is_empty() {
                let sums = &mut by_row[row * count..][..count];
                for (slope, at) in slopes.iter().zip(distances.clone()) {
                    sums[at - self.rows.start] += slope;
                }
            }
            if !to.of_keys.is_empty() {
                let sums = to.of_keys[block.first_key * count..].chunks_exact_mut(count);
                for ((slope, at), sums) in slopes.iter().zip(distances).zip(sums) {
                    sums[at - self.rows.start] += slope;
                }
            }
        }
        if let Some(table) = self.of_queries {
            let by_row = Matrix::new(&by_row, block.queries, count, count);
            matmul(of_queries, true, self.scale, by_row, table);
            let mut sums = view(&mut to.tables[0], count, table.columns());
            matmul(&mut sums, true, self.scale, by_row.transposed(), queries);
        }
    }

    /// Adds to the gradient of the keys, and completes those of the tables.
    pub(super) fn finish(&self, to: &mut Slopes, keys: Matrix<'_>, of_keys: &mut MatrixMut<'_>) {
        let Some(table) = self.table_of_keys else { return };
        let count = self.rows.len();
        let by_row = Matrix::new(&to.of_keys, keys.rows(), count, count);
        matmul(of_keys, true, self.scale, by_row, table);
        matmul(&mut view(&mut to.tables[1], count, table.columns()), false, self.scale, by_row.transposed(), keys);
    }
}

/// Gradients of one head of one sequence.
pub(super) struct Slopes {
    rows: Range<usize>,
    of_keys: Vec<f32>,
    /// Of the rows of the table that queries are multiplied by, and of that for keys.
    tables: [Vec<f32>; 2],
}

/// The gradients of the tables, summed over sequences in their order; `found` has those of each task.
pub(super) fn sum_tables(plan: &Plan, found: &[Slopes]) -> Result<[Option<Tensor>; 2]> {
    let Some(relative) = &plan.relative else { return Ok([None, None]) };
    let (d, width, heads) = (plan.kind.head_size, plan.query_width(), plan.kind.heads);
    let sum = |table: &Option<Tensor>, which: usize| {
        let Some(table) = table else { return Ok(None) };
        let mut sums = vec![0.0; table.elem_count()];
        for (task, slopes) in found.iter().enumerate() {
            let column = task % heads * d;
            for (row, slopes) in slopes.rows.clone().zip(slopes.tables[which].chunks_exact(d)) {
                let sums = &mut sums[row * width + column..][..d];
                sums.iter_mut().zip(slopes).for_each(|(sum, slope)| *sum += slope);
            }
        }
        tensor(sums, table.shape().clone()).map(Some)
    };
    Ok([sum(&relative.keys, 0)?, sum(&relative.queries, 1)?])
}
