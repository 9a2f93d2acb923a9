//! The layers of a base, whichever way its norms stand.

use std::rc::Rc;

use anyhow::Result;

use super::batch::{Batch, Pooled};
use super::builder::Builder;
use super::config::{BackboneConfig, LayersConfig};
use super::embeddings;
use super::modules::Embedding;
use super::post_norm::PostNorm;
use super::pre_norm::PreNorm;
use crate::ops::tape::{Tape, Value};

/// A transformer: frozen, with or without adapters, or trained.
pub(super) enum Layers {
    PreNorm(Box<PreNorm>),
    PostNorm(Box<PostNorm>),
}

/// The name of the token embeddings.
pub(super) fn embedding(config: &BackboneConfig) -> &'static str {
    match &config.layers {
        LayersConfig::PreNorm(layers) => layers.names.embedding,
        LayersConfig::PostNorm(_) => embeddings::WORDS,
    }
}

impl Layers {
    pub(super) fn new(builder: &mut Builder<'_>, config: &BackboneConfig, recompute: bool) -> Result<Self> {
        Ok(match &config.layers {
            LayersConfig::PreNorm(layers) => Self::PreNorm(Box::new(PreNorm::new(builder, config, layers, recompute)?)),
            LayersConfig::PostNorm(layers) => {
                Self::PostNorm(Box::new(PostNorm::new(builder, config, layers, recompute)?))
            }
        })
    }

    /// Returns true if rows of a batch may pass through different adapters: no layer projects what all rows share.
    pub(super) fn can_mix(&self) -> bool {
        match self {
            Self::PreNorm(_) => true,
            Self::PostNorm(layers) => layers.can_mix(),
        }
    }

    /// The hidden states after the last layer: of the pooled tokens, `(B, D)`, or of all, `(N, D)`.
    pub(super) fn forward(
        &self,
        tape: &Tape,
        embedded: &Value,
        batch: &Batch,
        pooled: Option<&Rc<Pooled>>,
    ) -> Result<Value> {
        match self {
            Self::PreNorm(layers) => layers.forward(tape, embedded, batch, pooled),
            Self::PostNorm(layers) => layers.forward(tape, embedded, batch, pooled),
        }
    }

    /// The embedded tokens, `(N, D)`.
    pub(super) fn embed(&self, tape: &Tape, batch: &Batch) -> Result<Value> {
        match self {
            Self::PreNorm(layers) => layers.embed(tape, batch),
            Self::PostNorm(layers) => layers.embed(tape, batch),
        }
    }

    /// The table of token embeddings, and what its rows are multiplied by.
    pub(super) fn words(&self) -> (&Embedding, f32) {
        match self {
            Self::PreNorm(layers) => layers.words(),
            Self::PostNorm(layers) => layers.words(),
        }
    }
}
