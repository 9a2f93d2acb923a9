//! A batch without padding: its sequences lie end to end.

use std::ops::Range;
use std::rc::Rc;

use candle_core::{Device, Result, Tensor};

use super::config::Pooling;
use crate::kernels::constant::Constant;
use crate::ops::attention::Sequences;

/// Token ids and positions of some examples, as a model sees them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// All tokens, sequence after sequence: N values.
    pub token_ids: Rc<[u32]>,
    /// Position of each token in its own sequence: N values.
    pub positions: Rc<Constant<u32>>,
    /// Where each sequence starts.
    pub sequences: Rc<Sequences>,
    /// Where the windows of each example start among the sequences, if an example has several: B + 1 values.
    pub windows: Option<Rc<[usize]>>,
    /// `(B, L)`, 0 or 1.
    pub labels: Tensor,
    /// What the frozen layers make of it, if that is at hand: see [`super::classifier::Classifier::frozen_output`].
    pub frozen: Option<Tensor>,
}

impl Batch {
    /// Lays sequences end to end. Every one has a token; each has L labels.
    ///
    /// # Errors
    /// If the labels do not make a `(B, L)` tensor.
    pub fn new<'a>(examples: impl IntoIterator<Item = (&'a [u32], &'a [f32])>) -> Result<Self> {
        let (mut token_ids, mut positions, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        let mut offsets = vec![0];
        for (tokens, example_labels) in examples {
            token_ids.extend_from_slice(tokens);
            positions.extend(0..tokens.len() as u32);
            labels.extend_from_slice(example_labels);
            offsets.push(token_ids.len());
        }
        let count = offsets.len() - 1;
        let shape = (count, labels.len() / count.max(1));
        let labels = Tensor::from_vec(labels, shape, &Device::Cpu)?;
        Ok(Self {
            token_ids: token_ids.into(),
            positions: Rc::new(positions.into()),
            sequences: Rc::new(Sequences::new(offsets, None)),
            windows: None,
            labels,
            frozen: None,
        })
    }

    /// The same for examples of which some have several windows: their lengths are given, none for one window.
    ///
    /// # Errors
    /// If the labels do not make a `(B, L)` tensor.
    pub fn windowed<'a>(
        examples: impl IntoIterator<Item = (&'a [u32], &'a [usize], &'a [f32])> + Clone,
    ) -> Result<Self> {
        let plain = examples.clone().into_iter().map(|(tokens, _, labels)| (tokens, labels));
        if examples.clone().into_iter().all(|(_, windows, _)| windows.is_empty()) {
            return Self::new(plain);
        }
        let labels = Self::new(plain)?.labels;
        let (mut sequences, mut starts) = (Vec::new(), vec![0]);
        for (mut tokens, windows, _) in examples {
            for &length in windows {
                let (window, rest) = tokens.split_at(length);
                sequences.push(window);
                tokens = rest;
            }
            sequences.extend((!tokens.is_empty()).then_some(tokens));
            starts.push(sequences.len());
        }
        let windows = Some(starts.into());
        Ok(Self { windows, labels, ..Self::new(sequences.into_iter().map(|tokens| (tokens, &[][..])))? })
    }

    /// The number of sequences: B, or more if examples have several windows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sequences.offsets.len() - 1
    }

    /// Returns true if there is no example.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first or last token of each sequence; `None` if all are pooled.
    #[must_use]
    pub fn pooled(&self, pooling: Pooling) -> Option<Rc<Pooled>> {
        let offsets = &self.sequences.offsets;
        let rows: Vec<u32> = match pooling {
            Pooling::First => offsets[..self.len()].iter().map(|&row| row as u32).collect(),
            Pooling::Last { padding } => offsets.windows(2).map(|ends| self.last(ends[0]..ends[1], padding)).collect(),
            Pooling::Mean | Pooling::Late => return None,
        };
        Some(Rc::new(Pooled {
            positions: Rc::new(rows.iter().map(|&row| self.positions[row as usize]).collect::<Vec<_>>().into()),
            sequences: Rc::new(Sequences::new(offsets.clone(), Some(rows.as_slice().into()))),
            rows: Rc::new(rows.into()),
        }))
    }
}

impl Batch {
    /// Some of its sequences, without labels.
    ///
    /// # Errors
    /// If there are no such sequences.
    pub(super) fn part(&self, sequences: Range<usize>) -> Result<Self> {
        let offsets = &self.sequences.offsets;
        Self::new(sequences.map(|b| (&self.token_ids[offsets[b]..offsets[b + 1]], &[0.0][..])))
    }

    /// The row of a sequence's last token that is not `padding`; of its first if all are.
    fn last(&self, rows: Range<usize>, padding: Option<u32>) -> u32 {
        let last = self.token_ids[rows.clone()].iter().rposition(|token| Some(*token) != padding);
        (rows.start + last.unwrap_or(0)) as u32
    }
}

/// One token a sequence: the only ones that the last layer computes after its attention.
#[derive(Clone, Debug)]
pub struct Pooled {
    /// Their rows in the batch: B values.
    pub rows: Rc<Constant<u32>>,
    /// Their positions in their sequences.
    pub positions: Rc<Constant<u32>>,
    /// The batch's sequences, with these tokens alone asking.
    pub sequences: Rc<Sequences>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_sequences_of_their_own() {
        let examples: [(&[u32], &[usize], &[f32]); 3] =
            [(&[5, 2, 7], &[], &[1.0, 0.0]), (&[5, 6, 2, 2, 9], &[3, 2], &[0.0, 1.0]), (&[8], &[], &[0.0, 0.0])];
        let batch = Batch::windowed(examples).unwrap();
        assert_eq!(batch.windows.as_deref(), Some(&[0, 1, 3, 4][..]));
        assert_eq!(*batch.sequences.offsets, [0, 3, 6, 8, 9]);
        assert_eq!(batch.positions.to_vec(), [0, 1, 2, 0, 1, 2, 0, 1, 0]);
        assert_eq!((batch.len(), batch.labels.dims()), (4, &[3, 2][..]));
        assert!(Batch::windowed([examples[0]]).unwrap().windows.is_none());
    }

    /// The choice of `GenericForSequenceClassification` in transformers 4.57.6.
    #[test]
    fn the_last_token_that_is_not_padding_is_pooled() {
        let texts: [&[u32]; 4] = [&[5, 2, 7], &[5, 6, 2, 2], &[2, 2], &[2]];
        let batch = Batch::new(texts.map(|tokens| (tokens, &[0.0][..]))).unwrap();
        let rows = |padding| batch.pooled(Pooling::Last { padding }).unwrap().rows.to_vec();
        assert_eq!(rows(Some(2)), [2, 4, 7, 9]);
        assert_eq!(rows(None), [2, 6, 8, 9]);
        assert_eq!(batch.pooled(Pooling::First).unwrap().rows.to_vec(), [0, 3, 7, 9]);
    }
}
