//! Shapes of attention over sequences that lie end to end.

use std::cell::OnceCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::buffer::rows_of;
use super::constant::Constant;
#[cfg(feature = "cuda")]
use super::cuda::tiles::HeldTiles;
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

/// Where sequences start, and which of their tokens ask. It does not change: layers share what a GPU holds of it.
#[derive(Debug)]
pub struct Sequences {
    /// B + 1 entries: sequence b has the rows `offsets[b] .. offsets[b + 1]` of keys and values.
    pub offsets: Vec<usize>,
    queries: Queries,
    numbers: OnceCell<Arc<Constant<u32>>>,
    #[cfg(feature = "cuda")]
    tiles: Arc<HeldTiles>,
}

/// Which tokens ask.
#[derive(Debug)]
enum Queries {
    All,
    /// One a sequence, by its row.
    One(Rc<[u32]>),
    /// The last of each sequence: where its queries start among all, B + 1 entries.
    Last(Vec<usize>),
}

impl Sequences {
    /// Sequences from B + 1 `offsets`; with `queries`, a row each, only those ask.
    #[must_use]
    pub fn new(offsets: Vec<usize>, queries: Option<Rc<[u32]>>) -> Self {
        Self::asked(offsets, queries.map_or(Queries::All, Queries::One))
    }

    /// Sequences whose last tokens alone ask: those of sequence b are rows `queries[b] .. queries[b + 1]` of q.
    #[must_use]
    pub fn with_past(offsets: Vec<usize>, queries: Vec<usize>) -> Self {
        Self::asked(offsets, Queries::Last(queries))
    }

    fn asked(offsets: Vec<usize>, queries: Queries) -> Self {
        Self {
            offsets,
            queries,
            numbers: OnceCell::new(),
            #[cfg(feature = "cuda")]
            tiles: Arc::default(),
        }
    }

    /// Rows of q: where each sequence's queries start, B + 1 entries.
    fn query_offsets(&self) -> Vec<usize> {
        match &self.queries {
            Queries::All => self.offsets.clone(),
            Queries::One(queries) => (0..=queries.len()).collect(),
            Queries::Last(queries) => queries.clone(),
        }
    }

    /// The position in its sequence of the first query of sequence `b`; the others follow it.
    fn first_position(&self, b: usize) -> usize {
        match &self.queries {
            Queries::All => 0,
            Queries::One(queries) => queries[b] as usize - self.offsets[b],
            Queries::Last(queries) => self.offsets[b + 1] - self.offsets[b] - (queries[b + 1] - queries[b]),
        }
    }

    /// Whether every query is a token of its sequence, and every sequence has one.
    fn queries_fit(&self) -> bool {
        let sequence = |b: usize| self.offsets[b]..self.offsets[b + 1];
        match &self.queries {
            Queries::All => true,
            Queries::One(queries) => {
                queries.iter().enumerate().all(|(b, &query)| sequence(b).contains(&(query as usize)))
            }
            Queries::Last(queries) => {
                let counts = queries.windows(2).enumerate();
                queries.first() == Some(&0)
                    && counts.into_iter().all(|(b, ends)| ends[0] < ends[1] && ends[1] - ends[0] <= sequence(b).len())
            }
        }
    }
}

/// Scores by the distance from a key to a query, beside those of their contents.
#[derive(Clone, Debug)]
pub struct Relative {
    /// Rows of the tables by distance.
    pub distances: Arc<Distances>,
    /// A row for each query, which it is multiplied by, `(P, H·d)`; scaled as scores are (DeBERTa: content to position).
    pub keys: Option<Tensor>,
    /// The same for each key (DeBERTa: position to content).
    pub queries: Option<Tensor>,
    /// Added as it is, `(P, H)` (MPNet).
    pub bias: Option<Arc<Constant>>,
}

/// Which row of a table each distance has.
#[derive(Debug)]
pub struct Distances {
    /// Rows of the distances, position of the query less that of the key, from −`longest` to `longest`.
    pub rows: Constant<u32>,
    /// The longest distance that it knows.
    pub longest: usize,
    /// P
    pub table: usize,
}

impl Distances {
    /// Rows by `row`, for distances up to `longest` on either side.
    #[must_use]
    pub fn new(longest: usize, table: usize, row: impl Fn(i64) -> usize) -> Self {
        let reach = longest as i64;
        let rows: Vec<u32> = (-reach..=reach).map(|distance| row(distance) as u32).collect();
        Self { rows: rows.into(), longest, table }
    }

    /// The rows that a sequence of `length` tokens reaches.
    pub(crate) fn rows_within(&self, length: usize) -> Range<usize> {
        let rows = &self.rows[self.longest + 1 - length..self.longest + length];
        let (first, last) = (rows.iter().min(), rows.iter().max());
        first.map_or(0, |&row| row as usize)..last.map_or(0, |&row| row as usize + 1)
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
    pub(crate) relative: Option<Relative>,
    /// For each sequence: its first query, the number of queries, the position of the first, its first key, its
    /// length.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "kernels of a GPU read it"))]
    pub(crate) sequences: Arc<Constant<u32>>,
    #[cfg(feature = "cuda")]
    pub(super) tiles: Arc<HeldTiles>,
}

impl Plan {
    /// Checks the shapes of q, k and v.
    pub(crate) fn new(
        [q, k, v]: [&Tensor; 3],
        kind: AttentionKind,
        relative: Option<Relative>,
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
            && sequences.queries_fit();
        if !fits {
            bail!("attention of {queries} queries over {tokens} tokens does not fit its sequences");
        }
        let longest = sequences.offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        if let Some(relative) = &relative {
            check_relative(relative, kind, longest)?;
        }
        let first_positions: Vec<_> = (0..count).map(|b| sequences.first_position(b)).collect();
        let offsets = sequences.offsets.clone();
        let numbers_of = |b: usize| {
            let (query, key) = (query_offsets[b], offsets[b]);
            let (queries, length) = (query_offsets[b + 1] - query, offsets[b + 1] - key);
            [query, queries, first_positions[b], key, length].map(|number| number as u32)
        };
        let numbers = sequences.numbers.get_or_init(|| {
            let numbers: Vec<u32> = (0..count).flat_map(numbers_of).collect();
            Arc::new(numbers.into())
        });
        let numbers = Arc::clone(numbers);
        Ok(Self {
            kind,
            offsets,
            query_offsets,
            first_positions,
            queries,
            tokens,
            kept,
            relative,
            sequences: numbers,
            #[cfg(feature = "cuda")]
            tiles: Arc::clone(&sequences.tiles),
        })
    }

    /// Where the keys of each sequence start, or its queries.
    #[cfg(feature = "cuda")]
    pub(crate) fn offsets_of(&self, of_keys: bool) -> &[usize] {
        if of_keys { &self.offsets } else { &self.query_offsets }
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

fn check_relative(relative: &Relative, kind: AttentionKind, longest: usize) -> Result<()> {
    let (distances, width) = (&relative.distances, kind.heads * kind.head_size);
    let mut fits = kind.heads == kind.key_value_heads
        && longest <= distances.longest + 1
        && distances.rows.len() == 2 * distances.longest + 1
        && distances.rows.iter().all(|&row| (row as usize) < distances.table)
        && relative.bias.as_ref().is_none_or(|bias| bias.len() == distances.table * kind.heads);
    for table in [&relative.keys, &relative.queries].into_iter().flatten() {
        fits &= rows_of(table, width)? == distances.table;
    }
    if !fits || kind.is_causal || kind.window.is_some() || kind.soft_cap.is_some() {
        bail!("{:?} with scores by distance up to {} over {longest} tokens", kind, distances.longest);
    }
    Ok(())
}
