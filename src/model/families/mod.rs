//! Model families: one file each, with its `config.json` as transformers 4 and 5 write it, the names of its modules
//! and its deviations.

mod albert;
mod bert;
mod custom_code;
mod deberta_v2;
mod distilbert;
mod electra;
mod eurobert;
mod file;
mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod mistral;
mod modernbert;
mod mpnet;
mod nomic_bert;
mod olmo2;
mod phi3;
pub mod python;
mod qwen;
mod roberta;
mod rope;
mod smollm3;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use self::file::ConfigFile;
use super::config::BackboneConfig;
use crate::embedded;

/// An architecture that llmcls computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLm3,
    Gemma2,
    Gemma3,
    Phi3,
    Olmo2,
    Granite,
    Bert,
    Roberta,
    XlmRoberta,
    DistilBert,
    Electra,
    Albert,
    MpNet,
    DebertaV2,
    ModernBert,
    EuroBert,
    NomicBert,
}

/// In the order in which messages list them.
const FAMILIES: [Family; 21] = [
    Family::Llama,
    Family::Mistral,
    Family::Qwen2,
    Family::Qwen3,
    Family::SmolLm3,
    Family::Gemma2,
    Family::Gemma3,
    Family::Phi3,
    Family::Olmo2,
    Family::Granite,
    Family::Bert,
    Family::Roberta,
    Family::XlmRoberta,
    Family::DistilBert,
    Family::Electra,
    Family::Albert,
    Family::MpNet,
    Family::DebertaV2,
    Family::ModernBert,
    Family::EuroBert,
    Family::NomicBert,
];

impl Family {
    /// `model_type` in `config.json`.
    fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::SmolLm3 => "smollm3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Phi3 => "phi3",
            Self::Olmo2 => "olmo2",
            Self::Granite => "granite",
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
            Self::DistilBert => "distilbert",
            Self::Electra => "electra",
            Self::Albert => "albert",
            Self::MpNet => "mpnet",
            Self::DebertaV2 => "deberta-v2",
            Self::ModernBert => "modernbert",
            Self::EuroBert => "eurobert",
            Self::NomicBert => "nomic_bert",
        }
    }

    /// The beginning of its classes' names in transformers.
    fn class_prefix(self) -> &'static str {
        match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
            Self::SmolLm3 => "SmolLM3",
            Self::Gemma2 => "Gemma2",
            Self::Gemma3 => "Gemma3Text",
            Self::Phi3 => "Phi3",
            Self::Olmo2 => "Olmo2",
            Self::Granite => "Granite",
            Self::Bert => "Bert",
            Self::Roberta => "Roberta",
            Self::XlmRoberta => "XLMRoberta",
            Self::DistilBert => "DistilBert",
            Self::Electra => "Electra",
            Self::Albert => "Albert",
            Self::MpNet => "MPNet",
            Self::DebertaV2 => "DebertaV2",
            Self::ModernBert => "ModernBert",
            Self::EuroBert => "EuroBert",
            Self::NomicBert => "NomicBert",
        }
    }

    /// True if some versions of transformers have no classifier of this family: none has one for Granite, and version 4
    /// has none for OLMo 2.
    fn lacks_classifier(self) -> bool {
        matches!(self, Self::Olmo2 | Self::Granite)
    }

    /// True if transformers 4 has no code of this family.
    fn is_of_version_5(self) -> bool {
        matches!(self, Self::EuroBert | Self::NomicBert)
    }

    fn of(file: &ConfigFile) -> Result<Self> {
        let supported = || FAMILIES.map(Self::model_type).join(", ");
        let Some(model_type) = file.text("model_type")? else { bail!("no model_type; supported: {}", supported()) };
        let known = model_type.strip_prefix(BackboneConfig::OWN_FORM).unwrap_or(model_type);
        FAMILIES
            .into_iter()
            .find(|family| family.model_type() == known)
            .with_context(|| format!("model_type `{model_type}` is not supported; supported: {}", supported()))
    }

    fn read(self, file: &ConfigFile) -> Result<BackboneConfig> {
        match self {
            Self::Llama => llama::read(file),
            Self::Mistral => mistral::read(file),
            Self::Qwen2 => qwen::read_2(file),
            Self::Qwen3 => qwen::read_3(file),
            Self::SmolLm3 => smollm3::read(file),
            Self::Gemma2 => gemma2::read(file),
            Self::Gemma3 => gemma3::read(file),
            Self::Phi3 => phi3::read(file),
            Self::Olmo2 => olmo2::read(file),
            Self::Granite => granite::read(file),
            Self::Bert => bert::read(file),
            Self::Roberta => roberta::read(file),
            Self::XlmRoberta => roberta::read_xlm(file),
            Self::DistilBert => distilbert::read(file),
            Self::Electra => electra::read(file),
            Self::Albert => albert::read(file),
            Self::MpNet => mpnet::read(file),
            Self::DebertaV2 => deberta_v2::read(file),
            Self::ModernBert => modernbert::read(file),
            Self::EuroBert => eurobert::read(file),
            Self::NomicBert => nomic_bert::read(file),
        }
    }
}

impl BackboneConfig {
    /// Stands before the `model_type` of complete models that transformers would compute in another way, so that it
    /// refuses them.
    pub const OWN_FORM: &str = "llmcls_";

    /// Reads `config.json`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = embedded::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
        Self::from_json(&text).with_context(|| format!("{}: not a usable model configuration", path.display()))
    }

    /// The keys of a `config.json` as transformers' own class of the family reads them, if they are others.
    ///
    /// # Errors
    /// If a key asks for something that the class does not compute.
    pub fn in_current_keys(keys: &Map<String, Value>) -> Result<Option<Map<String, Value>>> {
        let is_nomic = keys.get("model_type").and_then(Value::as_str) == Some(Family::NomicBert.model_type());
        if is_nomic { nomic_bert::in_current_keys(keys) } else { Ok(None) }
    }

    /// The class in transformers that a `config.json` with a classification head stands for.
    ///
    /// # Errors
    /// If the file cannot be read, or its family is not supported.
    pub fn classifier_class(path: &Path) -> Result<String> {
        let text = embedded::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
        let family = Family::of(&ConfigFile::parse(&text)?)?;
        Ok(format!("{}ForSequenceClassification", family.class_prefix()))
    }

    fn from_json(text: &str) -> Result<Self> {
        let file = ConfigFile::parse(text)?;
        let family = Family::of(&file)?;
        if let Some(auto_map) = file.value("auto_map") {
            custom_code::check(auto_map, family.model_type(), family.class_prefix())?;
        }
        if let Some(quantization) = file.value("quantization_config") {
            check_quantization(quantization)?;
        }
        for key in ["is_encoder_decoder", "add_cross_attention"] {
            file.refuse_unless(key, &[false.into()])?;
        }
        file.refuse_unless("pruned_heads", &[Value::Object(Map::new())])?;
        let config = family.read(&file)?;
        config.check()?;
        Ok(config)
    }
}

/// Accepts weights that bitsandbytes quantized to NF4 with double quantization.
fn check_quantization(config: &Value) -> Result<()> {
    for (key, expected) in [
        ("quant_method", Value::from("bitsandbytes")),
        ("load_in_4bit", Value::from(true)),
        ("bnb_4bit_quant_type", Value::from("nf4")),
        ("bnb_4bit_use_double_quant", Value::from(true)),
    ] {
        ensure!(
            config[key] == expected,
            "quantization_config: {key} is {}, and only {expected} is read; use the original weights with model.use_4bit",
            config[key]
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: &str = r#""model_type": "llama", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 6, "vocab_size": 40"#;

    fn parse(more: &str) -> Result<BackboneConfig> {
        parse_as("llama", more)
    }

    fn parse_as(model_type: &str, more: &str) -> Result<BackboneConfig> {
        let sizes = SIZES.replace("llama", model_type);
        let sizes = match model_type {
            "distilbert" => sizes.replace("intermediate_size", "hidden_dim"),
            "qwen2" | "qwen3" | "gemma2" | "gemma3_text" | "smollm3" | "mistral" => {
                format!("{sizes}, \"num_key_value_heads\": 2")
            }
            _ => sizes,
        };
        BackboneConfig::from_json(&format!("{{{sizes}{more}}}"))
    }

    #[test]
    fn both_spellings_of_rope_mean_the_same() {
        let llama3 = r#""rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64"#;
        let old = parse(&format!(r#", "rope_theta": 500000.0, "rope_scaling": {{{llama3}}}"#)).unwrap();
        let new = format!(r#", "rope_parameters": {{"rope_theta": 500000.0, {llama3}}}, "pad_token_id": null"#);
        assert_eq!(old, parse(&new).unwrap());
        assert_ne!(old.layers, parse("").unwrap().layers);
        let both = format!(r#"{new}, "rope_scaling": {{"type": "linear", "factor": 3.0}}"#);
        assert!(parse(&both).unwrap_err().to_string().contains("different things"));
    }

    #[test]
    fn keys_that_llmcls_does_not_compute_are_refused_by_name() {
        for (model_type, more, name) in [
            ("llama", r#", "hidden_act": "xielu""#, "xielu"),
            ("llama", r#", "rope_scaling": {"type": "mrope", "factor": 2.0}"#, "mrope"),
            ("qwen2", r#", "rope_parameters": {"rope_type": "su", "factor": 2.0}"#, "su"),
            ("llama", r#", "partial_rotary_factor": 0.5"#, "partial_rotary_factor"),
            ("llama", r#", "rope_parameters": {"full_attention": {"rope_type": "default"}}"#, "rope_parameters"),
            ("llama", r#", "layer_types": ["full_attention", "sliding_attention"]"#, "layer_types"),
            ("qwen3", r#", "layer_types": ["full_attention", "chunked_attention"]"#, "chunked_attention"),
            ("llama", r#", "auto_map": {"AutoModel": "x.py"}"#, "auto_map"),
            ("llama", r#", "num_key_value_heads": 4"#, "num_key_value_heads 4"),
            ("llama", r#", "quantization_config": {"quant_method": "gptq"}"#, "gptq"),
            ("mistral", r#", "attention_bias": true"#, "attention_bias"),
            ("gemma2", r#", "use_bidirectional_attention": true"#, "use_bidirectional_attention"),
            ("bert", r#", "position_embedding_type": "relative_key""#, "position_embedding_type"),
            ("bert", r#", "is_decoder": true"#, "is_decoder"),
            ("roberta", r#", "add_cross_attention": true"#, "add_cross_attention"),
            ("bert", r#", "pruned_heads": {"0": [1]}"#, "pruned_heads"),
            ("distilbert", r#", "activation": "mish""#, "mish"),
            ("gemma3_text", r#", "sliding_window": null"#, "sliding_window"),
            ("gemma3_text", r#", "rope_parameters": {"rope_type": "default"}"#, "rope_parameters"),
            ("smollm3", r#", "no_rope_layers": [1]"#, "no_rope_layers"),
            ("smollm3", r#", "layer_types": ["full_attention", "sliding_attention"]"#, "use_sliding_window"),
            ("electra", r#", "position_embedding_type": "relative_key""#, "position_embedding_type"),
            ("albert", r#", "num_hidden_groups": 3"#, "num_hidden_groups 3"),
            ("mpnet", r#", "relative_attention_num_buckets": 8"#, "relative_attention_num_buckets"),
            ("deberta-v2", r#", "conv_kernel_size": 3"#, "conv_kernel_size"),
            ("deberta-v2", r#", "pos_att_type": "c2p|c2c""#, "c2c"),
            ("deberta-v2", r#", "attention_head_size": 4"#, "attention_head_size"),
            (
                "deberta-v2",
                r#", "relative_attention": true, "pos_att_type": "c2p", "position_buckets": 1"#,
                "position_buckets",
            ),
            ("modernbert", r#", "classifier_pooling": "max""#, "classifier_pooling"),
            ("modernbert", r#", "rope_parameters": {"rope_type": "default"}"#, "rope_parameters"),
            ("eurobert", r#", "classifier_pooling": "cls""#, "classifier_pooling"),
            ("eurobert", r#", "clf_pooling": "mean""#, "clf_pooling"),
            ("eurobert", r#", "hidden_dropout": 0.1"#, "hidden_dropout"),
            ("nomic_bert", r#", "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}"#, "partial"),
            ("nomic_bert", r#", "is_decoder": true"#, "is_decoder"),
        ] {
            let error = parse_as(model_type, more).expect_err(more).to_string();
            assert!(error.contains(name), "{error}");
        }
        let error = BackboneConfig::from_json(r#"{"model_type": "gpt2"}"#).unwrap_err().to_string();
        assert!(error.contains("gpt2") && error.contains("supported: llama, mistral"), "{error}");
    }

    #[test]
    fn a_list_of_end_tokens_gives_its_first() {
        assert_eq!(parse(r#", "bos_token_id": null, "eos_token_id": [7, 8]"#).unwrap().empty_token, Some(7));
    }

    #[test]
    fn labels_stand_in_the_order_of_their_ids() {
        let labels = |entries: &str| parse(&format!(r#", "id2label": {{{entries}}}"#)).unwrap().labels;
        assert_eq!(labels(r#""1": "b", "10": "k", "2": "c", "0": "a""#), Vec::<String>::new());
        assert_eq!(labels(r#""1": "b", "2": "c", "0": "a""#), ["a", "b", "c"]);
    }
}
