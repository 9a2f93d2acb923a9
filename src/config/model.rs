//! `model:` the base and its adapters.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::reader::{FromNode, Section, Value, yaml_enum};
use super::tree::Tree;
use crate::kernels::Compute;

/// The section's keys, named as in the original project.
#[derive(Clone, Debug, Serialize)]
pub struct ModelConfig {
    /// A directory, or `org/name[@revision]` on the Hub.
    pub model_name: String,
    /// For gated models. Never recorded or shown.
    #[serde(skip)]
    pub hf_token: Option<Token>,
    /// What the labels are to each other.
    pub problem_type: ProblemType,
    /// Hold the base's linear layers in 4-bit NF4.
    pub use_4bit: bool,
    /// How other frozen weights are held.
    pub torch_dtype: TorchDtype,
    /// In what products with frozen weights are computed on the CPU.
    pub compute: ComputeType,
    /// r
    pub lora_r: usize,
    /// α
    pub lora_alpha: f64,
    /// Dropout before A.
    pub lora_dropout: f64,
    /// Which modules get an adapter.
    pub lora_target_modules: TargetModules,
    /// Weights from `init_seed` in place of the model's own.
    pub random_init: bool,
    /// Seed of random weights.
    pub init_seed: u32,
    /// A peft directory that adapters and head start from.
    pub init_adapter: Option<PathBuf>,
}

yaml_enum! {
    /// What the labels are to each other.
    ProblemType {
        /// Independent: sigmoid and binary cross-entropy.
        MultiLabel = "multi_label_classification",
        /// Exactly one holds: softmax and cross-entropy.
        SingleLabel = "single_label_classification",
    }
}

yaml_enum! {
    /// How frozen weights are held.
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
        /// f32.
        Float32 = "float32",
        /// Operands in bf16, sums in f32.
        Bfloat16 = "bfloat16",
    }
}

impl ModelConfig {
    /// In what products with frozen weights are computed, where it is the CPU that computes.
    #[must_use]
    pub fn compute_on_cpu(&self) -> Compute {
        match self.compute {
            ComputeType::Float32 => Compute::Float32,
            ComputeType::Bfloat16 => Compute::Bfloat16,
            ComputeType::Auto if self.torch_dtype == TorchDtype::Bfloat16 && Compute::Bfloat16.is_native() => {
                Compute::Bfloat16
            }
            ComputeType::Auto => Compute::Float32,
        }
    }

    /// Puts in place of `auto` what it stands for on this CPU: results depend on it, so runs record it.
    pub fn settle_compute(&mut self) {
        self.compute = match self.compute_on_cpu() {
            Compute::Float32 => ComputeType::Float32,
            Compute::Bfloat16 => ComputeType::Bfloat16,
        };
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
            None => Vec::from_node(node).filter(|names: &Vec<_>| !names.is_empty()).map(Self::Names),
        }
    }
}

/// An access token: it prints and serializes as `***`.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token itself, for the Hub alone.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }
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

impl ModelConfig {
    /// A section with these keys, and defaults for the others.
    ///
    /// # Errors
    /// If a value is not valid.
    pub fn from_pairs(pairs: &[(&str, serde_json::Value)]) -> anyhow::Result<Self> {
        // JSON is YAML.
        let text: serde_json::Map<_, _> = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let mut section = Section::root(Tree::parse(&serde_json::to_string(&text)?, "classifier.json")?);
        let config = Self::read(&mut section);
        let problems = section.finish();
        anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
        Ok(config)
    }

    pub(super) fn read(section: &mut Section) -> Self {
        let seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let config = Self {
            model_name: section.required("model_name"),
            hf_token: section.optional::<String>("hf_token").filter(|token| !token.is_empty()).map(Token),
            problem_type: section.key("problem_type", ProblemType::MultiLabel),
            use_4bit: section.key("use_4bit", true),
            torch_dtype: section.key("torch_dtype", TorchDtype::Bfloat16),
            compute: section.key("compute", ComputeType::Auto),
            lora_r: section.key("lora_r", 16),
            lora_alpha: section.key("lora_alpha", 16.0),
            lora_dropout: section.key("lora_dropout", 0.05),
            lora_target_modules: section
                .key("lora_target_modules", TargetModules::Names(seven.map(String::from).to_vec())),
            random_init: section.key("random_init", false),
            init_seed: section.key("init_seed", 0),
            init_adapter: section.optional::<String>("init_adapter").map(PathBuf::from),
        };
        section.check(config.lora_r > 0, "lora_r", "is 0, expected at least 1");
        section.check(config.lora_alpha > 0.0, "lora_alpha", "must be positive");
        section.check((0.0..1.0).contains(&config.lora_dropout), "lora_dropout", "must be at least 0 and below 1");
        config
    }
}
