//! `model:` the base and its adapters.

use std::fmt;
use std::path::PathBuf;

use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::keys::{or, required, section};
use super::reader::Section;
use super::tree::Tree;
use super::value::{FromNode, Value, yaml_enum};
use crate::secret;

section! {
    /// The section's keys, named as in the original project.
    pub struct ModelConfig in "model" checked by check {
        /// A directory, or `org/name[@revision]` on the Hub.
        model_name: String = required();
        /// Access token for gated models; otherwise `HF_TOKEN` is used. Never recorded or shown.
        #[serde(skip)]
        hf_token: Option<Token> = or(None).normalize(is_not_empty);
        /// Independent labels, or exactly one label for each row.
        problem_type: ProblemType = or(ProblemType::MultiLabel);
        /// Hold the base's linear layers in 4-bit NF4 with double quantization. A checkpoint that bitsandbytes quantized
        /// this way is read as it is.
        use_4bit: bool = or(true);
        /// Storage of the frozen weights that are not in 4 bits.
        torch_dtype: TorchDtype = or(TorchDtype::Bfloat16);
        /// In what products with frozen weights are computed on the CPU. `auto` is `bfloat16` where `torch_dtype` is and the
        /// CPU is faster in it (AVX512_BF16 without AMX, or AMX with `LLMCLS_AMX=1`), else `float32`; a run records which
        /// it was.
        compute: ComputeType = or(ComputeType::Auto);
        /// The weights that are trained: `lora` trains adapters beside the frozen base; `all` trains every weight of an
        /// encoder of up to 400 million parameters in f32, on the CPU. With `all`, `use_4bit` is false and `torch_dtype`
        /// float32, and the keys of LoRA may not be set.
        train: Trains = or(Trains::Lora);
        /// Rank r of the adapters.
        lora_r: usize = or(16).at_least(1).at_most(65_536);
        /// α: the adapters' output is scaled by α / r.
        lora_alpha: f64 = or(16.0).above(0).at_most(1e9);
        /// Dropout before A.
        lora_dropout: f64 = or(0.05).at_least(0).below(1);
        /// Scale the adapters' output by α / √r in place of α / r.
        use_rslora: bool = or(false);
        /// Modules that get an adapter: a list of names or dotted suffixes, `all-linear`, or a regular expression that
        /// matches whole names. Without it: all linear layers, by the names of the model's family. An empty list trains
        /// the head alone (a probe).
        lora_target_modules: Option<TargetModules> = or(None);
        /// Layers whose modules get adapters: a number for the last so many, or a list of layers, the first of which is
        /// 0. Layers below the first one are computed once for each text and kept: see `train.cache_limit`. Without it:
        /// all layers.
        lora_layers: Option<LoraLayers> = or(None);
        /// 0 switches the base's own dropout off, in its embeddings and layers; the head keeps its own. null: as the
        /// base was trained. Layers that drop elements cannot be computed once.
        base_dropout: Option<f64> = or(None).check(is_off, "must be 0, for none, or null, for the base's own");
        /// The hidden states that go into the head: the `first` token's, the `last` token's, or the `mean` of all. Without it
        /// as the model's family has it: `last` for decoders, `first` for most encoders. With another one BERT's pooler,
        /// which is made for the first token, is left out.
        pooling: Option<PoolingMode> = or(None);
        /// `bidirectional` lets the tokens of a decoder see those behind them, too. Without it: as the model was trained.
        attention: Option<AttentionMode> = or(None);
        /// With `attention: bidirectional`, layers before this one stay causal; the first is 0. Without it: none does.
        bidirectional_from_layer: Option<usize> = or(None).at_most(i32::MAX);
        /// Start from random weights in place of the model's own.
        random_init: bool = or(false);
        /// Seed of the random weights.
        init_seed: u32 = or(0);
        /// PEFT directory that adapters and head start from.
        init_adapter: Option<PathBuf> = or(None);
    }
}

yaml_enum! {
    /// Independent labels, or exactly one label for each row.
    ProblemType {
        /// Independent: sigmoid and binary cross-entropy.
        MultiLabel = "multi_label_classification",
        /// Exactly one holds: softmax and cross-entropy.
        SingleLabel = "single_label_classification",
    }
}

yaml_enum! {
    /// The weights that are trained.
    Trains {
        /// Adapters beside the frozen base.
        Lora = "lora",
        /// Every weight.
        All = "all",
    }
}

yaml_enum! {
    /// Storage of frozen weights.
    TorchDtype {
        /// 2 bytes, f32's range.
        Bfloat16 = "bfloat16",
        /// 2 bytes, IEEE half.
        Float16 = "float16",
        /// 4 bytes.
        Float32 = "float32",
    }
}

yaml_enum! {
    /// In what products with frozen weights are computed on the CPU.
    ComputeType {
        /// bfloat16 where the CPU has instructions for it and weights are held so, else float32.
        Auto = "auto",
        /// Products in f32.
        Float32 = "float32",
        /// Operands in bf16, sums in f32.
        Bfloat16 = "bfloat16",
    }
}

yaml_enum! {
    /// Hidden states that go into the head.
    #[derive(serde::Deserialize)]
    PoolingMode {
        /// Of the last token.
        Last = "last",
        /// The mean over all tokens.
        Mean = "mean",
        /// Of the first token.
        First = "first",
    }
}

yaml_enum! {
    /// The tokens that a token sees.
    #[derive(serde::Deserialize)]
    AttentionMode {
        /// Those before it.
        Causal = "causal",
        /// All.
        Bidirectional = "bidirectional",
    }
}

/// The keys by which a model is computed in another way than its family's models are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<PoolingMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bidirectional_from_layer: Option<usize>,
}

impl Form {
    /// Returns true if nothing differs from the family.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(keys) = json!(self).as_object().filter(|keys| !keys.is_empty()).cloned() else {
            return f.write_str("its usual form");
        };
        let parts: Vec<String> =
            keys.iter().map(|(key, value)| format!("{key} {}", value.to_string().trim_matches('"'))).collect();
        f.write_str(&parts.join(", "))
    }
}

/// `lora_target_modules`: a list of names, or `all-linear`, or a regular expression.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Exact names or dotted suffixes.
    Names(Vec<String>),
    /// `all-linear`, or an expression that matches whole names.
    Pattern(String),
}

impl FromNode for TargetModules {
    const EXPECTED: &'static str = "a list of module names, `all-linear`, or a regular expression";

    fn from_node(node: Value<'_>) -> Option<Self> {
        match node.text() {
            Some(pattern) => Some(Self::Pattern(pattern.to_owned())),
            None => Vec::from_node(node).map(Self::Names),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

/// `lora_layers`: a number of layers, or their indices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum LoraLayers {
    /// The last so many.
    Last(usize),
    /// These, the first of which is 0.
    Listed(Vec<usize>),
}

impl FromNode for LoraLayers {
    const EXPECTED: &'static str = "a number of layers of at least 1, or a list of layers that counts from 0";

    fn from_node(node: Value<'_>) -> Option<Self> {
        match usize::from_node(node) {
            Some(count) => Some(Self::Last(count)).filter(|_| count > 0),
            None => Vec::from_node(node).filter(|layers: &Vec<usize>| !layers.is_empty()).map(Self::Listed),
        }
    }

    fn schema() -> Json {
        let listed = json!({ "type": "array", "items": { "type": "integer", "minimum": 0 }, "minItems": 1 });
        json!({ "anyOf": [{ "type": "integer", "minimum": 1 }, listed] })
    }
}

impl LoraLayers {
    /// The layers of a base that has `count`.
    ///
    /// # Errors
    /// If it does not have them.
    pub fn of(&self, count: usize) -> anyhow::Result<Vec<usize>> {
        match self {
            Self::Last(last) => {
                anyhow::ensure!(*last <= count, "model.lora_layers is {last}, and the base has {count} layers");
                Ok((count - last..count).collect())
            }
            Self::Listed(layers) => {
                if let Some(layer) = layers.iter().find(|&&layer| layer >= count) {
                    anyhow::bail!(
                        "model.lora_layers names layer {layer}, and the base has {count} layers, 0 to {}",
                        count - 1
                    );
                }
                let mut layers = layers.clone();
                layers.sort_unstable();
                layers.dedup();
                Ok(layers)
            }
        }
    }
}

fn is_off(dropout: &Option<f64>) -> bool {
    dropout.is_none_or(|p| p == 0.0)
}

/// An access token: it prints and serializes as `***`.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Hides the token in every message from here on.
    fn new(token: String) -> Self {
        secret::remember(&token);
        Self(token)
    }

    /// The token itself, for the Hub alone.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl FromNode for Token {
    const EXPECTED: &'static str = "a token";

    fn from_node(node: Value<'_>) -> Option<Self> {
        String::from_node(node).map(Self::new)
    }

    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

/// Writes the section without the keys that mean nothing in it.
pub(super) fn serialize<S: Serializer>(config: &ModelConfig, serializer: S) -> Result<S::Ok, S::Error> {
    if config.train == Trains::Lora {
        return config.serialize(serializer);
    }
    let mut value = serde_json::to_value(config).map_err(S::Error::custom)?;
    if let Some(keys) = value.as_object_mut() {
        keys.retain(|key, _| !OF_LORA.contains(&key.as_str()));
    }
    value.serialize(serializer)
}

fn is_not_empty(token: Option<Token>) -> Option<Token> {
    token.filter(|token| !token.0.is_empty())
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// Keys that mean nothing where every weight is trained.
const OF_LORA: [&str; 6] =
    ["lora_r", "lora_alpha", "lora_dropout", "use_rslora", "lora_target_modules", "init_adapter"];

impl ModelConfig {
    /// Settles what `train: all` asks for, and refuses what does not go with it.
    fn check(&mut self, section: &Section) {
        section.check(
            self.bidirectional_from_layer.is_none() || self.attention == Some(AttentionMode::Bidirectional),
            "bidirectional_from_layer",
            "is given without `model.attention: bidirectional`",
        );
        if self.train != Trains::All {
            return;
        }
        for key in OF_LORA.into_iter().filter(|key| section.is_given(key)) {
            section.problem(key, "is for adapters, and with `model.train: all` there are none; remove it");
        }
        let wants = |key: &str| section.is_given(key);
        if wants("use_4bit") {
            section.check(
                !self.use_4bit,
                "use_4bit",
                "is true, and `model.train: all` trains weights in f32; remove it",
            );
        }
        if wants("torch_dtype") {
            let is_f32 = self.torch_dtype == TorchDtype::Float32;
            section.check(is_f32, "torch_dtype", "must be float32 with `model.train: all`; remove it");
        }
        let is_f32 = self.compute != ComputeType::Bfloat16;
        section.check(is_f32, "compute", "is bfloat16, and `model.train: all` computes in f32; remove it");
        (self.use_4bit, self.torch_dtype, self.compute) = (false, TorchDtype::Float32, ComputeType::Float32);
    }

    /// How the model is to be computed.
    #[must_use]
    pub fn form(&self) -> Form {
        let Self { pooling, attention, bidirectional_from_layer, .. } = *self;
        Form { pooling, attention, bidirectional_from_layer }
    }

    /// A section with these keys, and defaults for the others.
    pub fn from_pairs(pairs: &[(&str, serde_json::Value)]) -> anyhow::Result<Self> {
        // JSON is YAML.
        let text: serde_json::Map<_, _> = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let mut section = Section::root(Tree::parse(&serde_json::to_string(&text)?, "classifier.json")?);
        let config = Self::read(&mut section);
        let problems = section.finish();
        anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
        Ok(config)
    }
}
