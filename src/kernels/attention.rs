//! Shapes of attention over sequences that lie end to end.

use std::rc::Rc;

use candle_core::{Result, Tensor, bail};

use super::buffer::rows_of;
use super::constant::Constant;
use super::mask::{Choice, Dropout};

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
    /// The most keys that a query sees, itself included; without `is_causal`, keys less than this far away on either
    /// side.
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

/// One attention: its shapes, checked, and which probabilities are kept.
pub(crate) struct Plan {
    pub(crate) kind: AttentionKind,
    pub(crate) offsets: Vec<usize>,
    pub(crate) query_offsets: Vec<usize>,
    pub(crate) first_positions: Vec<usize>,
    pub(crate) queries: usize,
    pub(crate) tokens: usize,
    /// Draws which probabilities are kept, if not all are.
    pub(crate) kept: Option<Choice>,
    /// For each sequence: its first query, the number of queries, the position of the first, its first key, its
    /// length.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "kernels of a GPU read it"))]
    pub(crate) sequences: Constant<u32>,
}

impl Plan {
    /// Checks the shapes of q, k and v.
    pub(crate) fn new(
        [q, k, v]: [&Tensor; 3],
        kind: AttentionKind,
        sequences: &Sequences,
        kept: Option<Choice>,
    ) -> Result<Self> {
        let AttentionKind { heads, key_value_heads, head_size, .. } = kind;
        if key_value_heads == 0 || heads % key_value_heads != 0 {
            bail!("{heads} heads do not share {key_value_heads} key heads");
        }
        let queries = rows_of(q, heads * head_size)?;
        let tokens = rows_of(k, key_value_heads * head_size)?;
        let query_offsets = sequences.query_offsets();
        let count = sequences.offsets.len().saturating_sub(1);
        let fits = rows_of(v, key_value_heads * head_size)? == tokens
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
        let first_positions: Vec<_> = (0..count).map(|b| sequences.first_position(b)).collect();
        let offsets = sequences.offsets.clone();
        let numbers: Vec<u32> = (0..count)
            .flat_map(|b| {
                let (query, key) = (query_offsets[b], offsets[b]);
                let (queries, length) = (query_offsets[b + 1] - query, offsets[b + 1] - key);
                [query, queries, first_positions[b], key, length].map(|number| number as u32)
            })
            .collect();
        Ok(Self { kind, offsets, query_offsets, first_positions, queries, tokens, kept, sequences: numbers.into() })
    }

    pub(crate) fn query_width(&self) -> usize {
        self.kind.heads * self.kind.head_size
    }

    pub(crate) fn key_width(&self) -> usize {
        self.kind.key_value_heads * self.kind.head_size
    }

    /// Query heads that share one key head.
    pub(crate) fn group(&self) -> usize {
        self.kind.heads / self.kind.key_value_heads
    }
}
