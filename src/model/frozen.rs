//! The tensors of a base that stay frozen: what each is called in its files and in a classifier, and its numbers.

use std::cell::Cell;

use anyhow::Result;
use rayon::prelude::*;

use super::weights::{BaseStorage, Weights};

/// A tensor of the base that stays frozen, as the builder took it.
#[derive(Clone, Debug)]
pub(super) struct Frozen {
    /// In the base's files.
    pub(super) stored: String,
    /// In a classifier's.
    pub(super) name: String,
    pub(super) kind: FrozenKind,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum FrozenKind {
    Matrix {
        rows: usize,
        columns: usize,
        /// Not an embedding: held in 4 bits where the base is.
        is_linear: bool,
        /// The number of matrices made before it, which selects the stream of random ones.
        made: u32,
    },
    /// A vector of a norm; one with random weights is 1, or 0 if stored as its difference from 1.
    Scale {
        len: usize,
        is_from_one: bool,
    },
    Bias {
        len: usize,
    },
}

impl Frozen {
    /// The numbers, as the model computes with them.
    pub(super) fn read(&self, weights: &Weights, storage: BaseStorage) -> Result<Vec<f32>> {
        match self.kind {
            FrozenKind::Matrix { rows, columns, is_linear, made } => {
                let storage = BaseStorage { is_4bit: storage.is_4bit && is_linear, ..storage };
                let matrix = match weights {
                    Weights::Random { seed, std, .. } => {
                        let at = Weights::Random { seed: *seed, std: *std, made: Cell::new(made) };
                        at.matrix(&self.stored, rows, columns, storage)?
                    }
                    Weights::Checkpoint(_) => weights.matrix(&self.stored, rows, columns, storage)?,
                };
                let mut values = vec![0.0; rows * columns];
                const PIECE: usize = 1 << 16;
                values.par_chunks_mut(PIECE).enumerate().for_each(|(index, out)| matrix.read(index * PIECE, out));
                Ok(values)
            }
            FrozenKind::Scale { len, is_from_one } => {
                let mut values = weights.norm(&self.stored, len)?;
                if is_from_one && matches!(weights, Weights::Random { .. }) {
                    values.iter_mut().for_each(|value| *value -= 1.0);
                }
                Ok(values)
            }
            FrozenKind::Bias { len } => Ok(weights.bias(&self.stored, len, true)?.unwrap_or_default()),
        }
    }
}
