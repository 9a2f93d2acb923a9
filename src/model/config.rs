//! The shape of a pretrained model, whatever its family.

use anyhow::{Result, ensure};

use super::rope::Rope;
use crate::ops::activation::Activation;

/// The architecture of a pretrained model.
#[derive(Clone, Debug, PartialEq)]
pub struct BackboneConfig {
    /// D
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// H
    pub num_attention_heads: usize,
    /// K
    pub num_key_value_heads: usize,
    /// d
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence that the model can take, in tokens, if there is a limit.
    pub max_tokens: Option<usize>,
    /// Deviation of random weights and of the classification head.
    pub initializer_range: f32,
    /// The token that stands for a text without any.
    pub empty_token: Option<u32>,
    /// `pad_token_id`, whose embedding torch never trains.
    pub padding_token: Option<u32>,
    /// The function inside the MLP.
    pub activation: Activation,
    /// The model's own dropout in training.
    pub dropouts: Dropouts,
    /// Comes before a base model's names in a classifier's.
    pub prefix: &'static str,
    /// Modules that get an adapter if the configuration names none; empty: all linear ones.
    pub default_targets: &'static [&'static str],
    /// The labels that the file gives the model's own classifier; empty: none.
    pub labels: Vec<String>,
    /// Architecture of the layers.
    pub layers: LayersConfig,
    /// Architecture of the head, which turns hidden states into logits.
    pub head: HeadConfig,
    /// The head for words, of a family that was trained to go on with a text.
    pub language_head: Option<LanguageHeadConfig>,
}

/// The head of a language model: logits of words are `E h / divisor`, bent below `soft_cap`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LanguageHeadConfig {
    /// True if E is the table of token embeddings, else `lm_head`.
    pub is_tied: bool,
    /// Divides logits (Granite).
    pub divisor: f32,
    /// Logits become `c · tanh(logit / c)` (Gemma).
    pub soft_cap: Option<f32>,
}

/// Probabilities of the base's own dropouts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropouts {
    /// After the embeddings.
    pub embedding: f32,
    /// Dropout of attention's probabilities.
    pub attention: f32,
    /// Dropout of attention's output, before it is added.
    pub attention_output: f32,
    /// Inside the MLP.
    pub inside_mlp: f32,
    /// Dropout of the MLP's output, before it is added.
    pub mlp_output: f32,
}

/// Architecture of the layers.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one a model")]
pub enum LayersConfig {
    /// Norms before attention and MLP: decoders, and ModernBERT.
    PreNorm(Box<PreNormConfig>),
    /// Norms after the sums: BERT and its kin.
    PostNorm(PostNormConfig),
}

/// Layers with norms before attention and MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct PreNormConfig {
    /// Names of the modules.
    pub names: &'static PreNormNames,
    /// Kind of every norm.
    pub norm: NormKind,
    /// ε of every norm.
    pub epsilon: f32,
    /// True if q, k and v have biases.
    pub query_key_value_bias: bool,
    /// True if the output of attention has a bias.
    pub output_bias: bool,
    /// Which parts of q and k are normalised, if any.
    pub query_key_norm: Option<QueryKeyNorm>,
    /// True if the linear layers of the MLP have biases.
    pub mlp_bias: bool,
    /// True if a token sees only the tokens before it.
    pub is_causal: bool,
    /// Layers of a causal model from this one on see the tokens behind, too.
    pub bidirectional_from: Option<usize>,
    /// For each layer how many tokens a token sees, as [`crate::ops::attention::AttentionKind`] counts
    /// them; none: all.
    pub windows: Vec<Option<usize>>,
    /// Multiplies attention's scores.
    pub scale: f32,
    /// Bends attention's scores (Gemma 2).
    pub soft_cap: Option<f32>,
    /// Multiplies embeddings (Gemma, Granite).
    pub embedding_scale: f32,
    /// Multiplies what attention and MLP add (Granite).
    pub residual_scale: f32,
    /// Whether a layer rotates q and k (SmolLM3 leaves some out).
    pub rotates: Vec<bool>,
    /// Rotary embedding of the layers that see all tokens, and of those that have a window.
    pub ropes: [Rope; 2],
}

/// What is normalised of q and k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// Each head on its own (Qwen 3, Gemma 3).
    Heads,
    /// All heads of a token together (OLMo 2).
    Whole,
}

/// Kinds of norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Divides by the root of the mean square.
    Rms,
    /// The same, with weights stored as their difference from 1 (Gemma).
    RmsFromOne,
    /// Centres, too.
    Layer {
        /// True if it has a bias.
        has_bias: bool,
    },
}

/// Names of a base's modules, as its weights are stored.
#[derive(Debug, PartialEq, Eq)]
pub struct PreNormNames {
    /// Token embeddings.
    pub embedding: &'static str,
    /// A norm after them; then the first layer has none before its attention.
    pub embedding_norm: Option<&'static str>,
    /// The list of layers.
    pub layers: &'static str,
    /// Before attention.
    pub attention_norm: Option<&'static str>,
    /// q, k and v: three modules, or one.
    pub query_key_value: &'static [&'static str],
    /// Attention's output.
    pub output: &'static str,
    /// A norm after it, before the sum.
    pub after_attention: Option<&'static str>,
    /// Before the MLP.
    pub mlp_norm: Option<&'static str>,
    /// Gate and up: two modules, or one.
    pub gate_up: &'static [&'static str],
    /// The MLP's output.
    pub down: &'static str,
    /// A norm after it, before the sum.
    pub after_mlp: Option<&'static str>,
    /// After the last layer.
    pub last_norm: &'static str,
}

/// Layers with norms after the sums.
#[derive(Clone, Debug, PartialEq)]
pub struct PostNormConfig {
    /// Names of the modules.
    pub names: &'static PostNormNames,
    /// ε of every norm.
    pub epsilon: f32,
    /// Multiplies attention's scores.
    pub scale: f32,
    /// What comes before the first layer.
    pub embeddings: EmbeddingsConfig,
    /// True if linear layers have biases.
    pub has_bias: bool,
    /// Rotates q and k, in place of embeddings of positions (NomicBERT).
    pub rope: Option<Rope>,
    /// What attention's scores have by distance.
    pub relative: Option<RelativeConfig>,
    /// Paths of the layers that are stored.
    pub stored: Vec<String>,
    /// Which of them are computed, one after the other.
    pub order: Vec<usize>,
}

/// What comes before the first layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingsConfig {
    /// Width of the tables.
    pub width: usize,
    /// Rows of the position embeddings; none: there are none.
    pub positions: Option<usize>,
    /// The row of the first token's position.
    pub first_position: usize,
    /// Rows of the token type embeddings, of which the first is added; none: there are none.
    pub token_types: Option<usize>,
    /// What makes them as wide as layers.
    pub projection: Option<Projection>,
}

/// A linear layer that makes embeddings as wide as layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Its name.
    pub name: &'static str,
    /// Whether it has a bias.
    pub has_bias: bool,
    /// Whether it comes before the norm.
    pub is_before_norm: bool,
}

/// What attention's scores have by the distance between query and key.
#[derive(Clone, Debug, PartialEq)]
pub enum RelativeConfig {
    /// Products with projected embeddings of distances (DeBERTa).
    Disentangled(Disentangled),
    /// A number for each head (MPNet).
    Bias {
        /// The table's name.
        table: &'static str,
        /// Its rows.
        rows: usize,
    },
}

/// Embeddings of distances, and what they are multiplied by (DeBERTa).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disentangled {
    /// The table's name.
    pub table: &'static str,
    /// A norm of its rows.
    pub norm: Option<&'static str>,
    /// Logarithmic buckets on either side; 0: every distance has its own.
    pub buckets: usize,
    /// The longest distance that is told from longer ones.
    pub reach: usize,
    /// The module that projects it for queries, content to position; none: that term is not there.
    pub keys: Option<&'static str>,
    /// The same for keys, position to content.
    pub queries: Option<&'static str>,
    /// Whether both are attention's own modules for keys and queries.
    pub is_shared: bool,
}

/// Names of a layer's modules, as its weights are stored.
#[derive(Debug, PartialEq, Eq)]
pub struct PostNormNames {
    /// q, k, v.
    pub query_key_value: [&'static str; 3],
    /// Attention's output.
    pub output: &'static str,
    /// After the first sum.
    pub attention_norm: &'static str,
    /// Into the MLP; then its activation is multiplied by `up` (NomicBERT).
    pub gate: Option<&'static str>,
    /// Into the MLP.
    pub up: &'static str,
    /// Out of it.
    pub down: &'static str,
    /// After the second sum.
    pub mlp_norm: &'static str,
}

/// Hidden states that go into the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Each sequence's first token.
    First,
    /// Each sequence's last token that is not this one, `pad_token_id`, which a tokenizer may put there as its last;
    /// transformers passes over it.
    Last {
        /// None: the last token, whatever it is.
        padding: Option<u32>,
    },
    /// The mean of its tokens.
    Mean,
    /// All its tokens; the mean of what the head's `dense` makes of each is classified, which is the mean of their
    /// logits (EuroBERT).
    Late,
}

impl Pooling {
    /// Whether all tokens of a sequence count, not one.
    #[must_use]
    pub fn takes_all(self) -> bool {
        matches!(self, Self::Mean | Self::Late)
    }
}

/// Architecture of the head: `classifier(drop(norm(f(dense(drop(pooled))))))`. Only pooling and classifier are in all
/// heads.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadConfig {
    /// Hidden states that go in.
    pub pooling: Pooling,
    /// Left out before `dense`.
    pub input_dropout: f32,
    /// A layer before the classifier.
    pub dense: Option<DenseConfig>,
    /// Left out before the classifier.
    pub dropout: f32,
    /// The classifier's name.
    pub classifier: &'static str,
    /// True if it has a bias.
    pub has_bias: bool,
    /// Deviation of the classifier's first weights.
    pub classifier_std: f32,
    /// Within how many deviations its first weights and those of `dense` lie; none: anywhere.
    pub cutoff: Option<f32>,
    /// Modules that peft must save whole, beside `classifier` and `score`.
    pub modules_to_save: &'static [&'static str],
}

/// A layer before the classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseConfig {
    /// Its name; a part of the base if the base's prefix belongs before it.
    pub name: &'static str,
    /// True if base models contain it; then it stays frozen.
    pub is_of_base: bool,
    /// True if it has a bias.
    pub has_bias: bool,
    /// Deviation of its first weights.
    pub std: f32,
    /// After it.
    pub activation: Activation,
    /// A norm after that: its name, its ε, and whether it has a bias.
    pub norm: Option<(&'static str, f32, bool)>,
}

impl BackboneConfig {
    /// Checks sizes that a computation relies on.
    pub(super) fn check(&self) -> Result<()> {
        let (heads, key_value_heads) = (self.num_attention_heads, self.num_key_value_heads);
        for (key, size, largest) in [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", heads, 1 << 16),
            ("num_key_value_heads", key_value_heads, 1 << 16),
            ("head_dim", self.head_dim, 1 << 16),
            ("vocab_size", self.vocab_size, 1 << 26),
            ("max_position_embeddings", self.max_tokens.unwrap_or(1), 1 << 26),
        ] {
            ensure!((1..=largest).contains(&size), "{key} is {size}, expected 1 to {largest}");
        }
        ensure!(
            heads.is_multiple_of(key_value_heads),
            "num_attention_heads {heads} is not a multiple of num_key_value_heads {key_value_heads}"
        );
        for dropout in [
            self.dropouts.embedding,
            self.dropouts.attention,
            self.dropouts.attention_output,
            self.dropouts.inside_mlp,
            self.dropouts.mlp_output,
            self.head.dropout,
            self.head.input_dropout,
        ] {
            ensure!((0.0..1.0).contains(&dropout), "a dropout of {dropout}, expected at least 0 and below 1");
        }
        let ropes = match &self.layers {
            LayersConfig::PreNorm(layers) => layers.ropes.as_slice(),
            LayersConfig::PostNorm(layers) => layers.rope.as_slice(),
        };
        for rope in ropes {
            ensure!(
                rope.width >= 2 && rope.width.is_multiple_of(2) && rope.width <= self.head_dim,
                "head_dim {} of which {} are rotated, expected an even number",
                self.head_dim,
                rope.width
            );
        }
        if let LayersConfig::PostNorm(layers) = &self.layers {
            let width = layers.embeddings.width;
            ensure!((1..=1 << 20).contains(&width), "embedding_size is {width}, expected 1 to {}", 1 << 20);
            if let Some(RelativeConfig::Disentangled(tables)) = &layers.relative {
                tables.check()?;
            }
        }
        Ok(())
    }

    /// Whether a token sees those behind it: an encoder, such as BERT.
    #[must_use]
    pub fn is_encoder(&self) -> bool {
        match &self.layers {
            LayersConfig::PreNorm(layers) => !layers.is_causal,
            LayersConfig::PostNorm(_) => true,
        }
    }

    /// Whether every weight can be trained: layers are not shared, and neither distances nor widths are projected.
    #[must_use]
    pub fn has_plain_layers(&self) -> bool {
        match &self.layers {
            LayersConfig::PreNorm(layers) => matches!(layers.norm, NormKind::Layer { .. }),
            LayersConfig::PostNorm(layers) => {
                let is_shared = layers.order.iter().copied().ne(0..layers.stored.len());
                layers.relative.is_none() && layers.embeddings.projection.is_none() && !is_shared
            }
        }
    }

    /// Weights of the linear layers.
    #[must_use]
    pub fn linear_weights(&self) -> usize {
        let (d, mlp) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let (layers, products, beside) = match &self.layers {
            LayersConfig::PreNorm(_) => (self.num_hidden_layers, 3, 0),
            LayersConfig::PostNorm(layers) => {
                let projections = match &layers.relative {
                    Some(RelativeConfig::Disentangled(tables)) if !tables.is_shared => {
                        usize::from(tables.keys.is_some()) + usize::from(tables.queries.is_some())
                    }
                    _ => 0,
                };
                let projection = layers.embeddings.projection.map_or(0, |_| d * layers.embeddings.width);
                let products = 2 + usize::from(layers.names.gate.is_some());
                (layers.stored.len(), products, layers.stored.len() * projections * d * d + projection)
            }
        };
        layers * (2 * d * queries + 2 * d * keys + products * d * mlp) + beside
    }

    /// Weights of the embeddings.
    #[must_use]
    pub fn embedding_weights(&self) -> usize {
        match &self.layers {
            LayersConfig::PreNorm(_) => self.vocab_size * self.hidden_size,
            LayersConfig::PostNorm(layers) => {
                let tables = &layers.embeddings;
                let rows = self.vocab_size + tables.positions.unwrap_or(0) + tables.token_types.unwrap_or(0);
                rows * tables.width + self.distance_rows() * self.hidden_size
            }
        }
    }

    /// Layers that are computed, one after the other: more than are stored where layers are shared.
    #[must_use]
    pub fn computed_layers(&self) -> usize {
        match &self.layers {
            LayersConfig::PreNorm(_) => self.num_hidden_layers,
            LayersConfig::PostNorm(layers) => layers.order.len(),
        }
    }

    /// Rows of the embeddings of distances.
    #[must_use]
    pub fn distance_rows(&self) -> usize {
        match &self.layers {
            LayersConfig::PostNorm(PostNormConfig { relative: Some(RelativeConfig::Disentangled(tables)), .. }) => {
                2 * tables.span()
            }
            _ => 0,
        }
    }
}
