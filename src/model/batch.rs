//! A batch without padding: its sequences lie end to end.

use std::rc::Rc;

use candle_core::{Device, Result, Tensor};

use crate::ops::attention::Sequences;

/// What a model sees of some examples.
#[derive(Clone, Debug)]
pub struct Batch {
    /// All tokens, sequence after sequence: N values.
    pub token_ids: Vec<u32>,
    /// Position of each token in its own sequence: N values.
    pub positions: Rc<[u32]>,
    /// Where each sequence starts.
    pub sequences: Rc<Sequences>,
    /// The row of each sequence's pooled token, its last: B values.
    pub pooled: Rc<[u32]>,
    /// `(B, L)`, 0 or 1.
    pub labels: Tensor,
}

impl Batch {
    /// Lays sequences end to end. Every one has a token; each has L labels.
    ///
    /// # Errors
    /// If the labels do not make a `(B, L)` tensor.
    pub fn new<'a>(examples: impl IntoIterator<Item = (&'a [u32], &'a [f32])>) -> Result<Self> {
        let (mut token_ids, mut positions, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        let (mut offsets, mut pooled) = (vec![0], Vec::new());
        for (tokens, example_labels) in examples {
            token_ids.extend_from_slice(tokens);
            positions.extend(0..tokens.len() as u32);
            labels.extend_from_slice(example_labels);
            offsets.push(token_ids.len());
            pooled.push(token_ids.len() as u32 - 1);
        }
        let labels =
            Tensor::from_vec(labels.clone(), (pooled.len(), labels.len() / pooled.len().max(1)), &Device::Cpu)?;
        Ok(Self {
            token_ids,
            positions: positions.into(),
            sequences: Rc::new(Sequences { offsets, queries: None }),
            pooled: pooled.into(),
            labels,
        })
    }

    /// B
    #[must_use]
    pub fn len(&self) -> usize {
        self.pooled.len()
    }

    /// Whether there is no example.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pooled.is_empty()
    }
}
