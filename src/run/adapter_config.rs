//! `adapter_config.json` of peft: the keys that decide what an adapter computes, and those that llmcls refuses.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::model::lora::{LayerFilter, LoraOptions, ModulePattern, Targets};

/// The file's name.
pub const CONFIG: &str = "adapter_config.json";

/// Keys that change what is computed in a way that llmcls does not compute, each with the way out.
const REFUSED: [(&str, &str); 15] = [
    ("use_dora", "train it without DoRA, or merge it into the base with peft's merge_and_unload"),
    ("use_qalora", "train it without QALoRA"),
    ("use_bdlora", "train it without BD-LoRA"),
    ("lora_bias", "train it with lora_bias=False, or merge it into the base with peft's merge_and_unload"),
    ("fan_in_fan_out", "no model that llmcls computes stores its weights so; set it to false"),
    ("alora_invocation_tokens", "an activated LoRA acts from some tokens on only; train a plain one"),
    ("layer_replication", "merge the adapter, and save the model with its repeated layers"),
    ("megatron_config", "save the adapter from transformers, without Megatron"),
    ("trainable_token_indices", "trained embeddings are not supported; train without them"),
    ("target_parameters", "name modules in target_modules"),
    ("velora_config", "train a plain LoRA"),
    ("monteclora_config", "train a plain LoRA"),
    ("arrow_config", "train a plain LoRA"),
    ("kasa_config", "train a plain LoRA"),
    ("use_mora", "train a plain LoRA"),
];

/// Keys that are read, or that change nothing in a trained LoRA.
const KNOWN: [&str; 29] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "ephemeral_gpu_offload",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

pub(super) struct AdapterConfig {
    keys: Map<String, Value>,
    rank_pattern: Vec<(String, Value)>,
    alpha_pattern: Vec<(String, Value)>,
}

impl AdapterConfig {
    pub(super) fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Patterns {
            #[serde(default)]
            rank_pattern: Option<InOrder>,
            #[serde(default)]
            alpha_pattern: Option<InOrder>,
        }
        let keys: Map<String, Value> = serde_json::from_str(text).context("it is not a JSON object")?;
        let patterns: Patterns = serde_json::from_str(text)?;
        let list = |patterns: Option<InOrder>| patterns.map(|patterns| patterns.0).unwrap_or_default();
        Ok(Self { keys, rank_pattern: list(patterns.rank_pattern), alpha_pattern: list(patterns.alpha_pattern) })
    }

    /// The adapters' shape, and the base's name if there is one.
    pub(super) fn resolve(&self) -> Result<(LoraOptions, Option<String>)> {
        self.refuse()?;
        // peft's own defaults.
        let rank = rank("r", self.set("r").unwrap_or(&Value::from(8)))?;
        let alpha = number("lora_alpha", self.set("lora_alpha").unwrap_or(&Value::from(8)))?;
        let dropout = number("lora_dropout", self.set("lora_dropout").unwrap_or(&Value::from(0)))?;
        let Some(targets) = self.set("target_modules") else {
            bail!("`target_modules` is not there: save the adapter again with the peft that trained it");
        };
        let mut lora = LoraOptions::new(rank, alpha, dropout, modules("target_modules", targets)?);
        lora.use_rslora = self.flag("use_rslora")?;
        for (pattern, value) in &self.rank_pattern {
            let value = self::rank("rank_pattern", value)?;
            lora.rank_pattern.push(ModulePattern::new(pattern, value).context("rank_pattern")?);
        }
        for (pattern, value) in &self.alpha_pattern {
            let value = number("alpha_pattern", value)?;
            lora.alpha_pattern.push(ModulePattern::new(pattern, value).context("alpha_pattern")?);
        }
        lora.exclude = self.set("exclude_modules").map(|value| modules("exclude_modules", value)).transpose()?;
        lora.layers = self.layers()?;
        let mut whole = self.names("modules_to_save")?;
        // peft adds them for a classifier.
        if self.set("task_type").is_some_and(|kind| kind == "SEQ_CLS") {
            whole.extend(["classifier", "score"].map(str::to_owned));
        }
        lora.modules_to_save = Some(whole);
        let base = self.set("base_model_name_or_path").and_then(Value::as_str).filter(|name| !name.is_empty());
        Ok((lora, base.map(str::to_owned)))
    }

    fn refuse(&self) -> Result<()> {
        let kind = self.set("peft_type").and_then(Value::as_str).unwrap_or_default();
        ensure!(
            kind == "LORA",
            "peft_type `{kind}` is not supported; supported: LORA. Merge the adapter into the base with peft's \
             merge_and_unload, or train a LoRA"
        );
        for (key, help) in REFUSED {
            if let Some(value) = self.set(key) {
                bail!("`{key}` is {value}, which llmcls does not compute: {help}");
            }
        }
        if let Some(bias) = self.set("bias").filter(|bias| *bias != "none") {
            bail!("`bias` is {bias}, which llmcls does not compute: train it with bias=\"none\"");
        }
        if let Some(init) = self.set("init_lora_weights") {
            let name = init.as_str().map(str::to_ascii_lowercase);
            let keeps_base = ["true", "gaussian", "orthogonal", "eva", "mica"];
            ensure!(
                init.as_bool().is_some() || name.is_some_and(|name| keeps_base.contains(&name.as_str())),
                "`init_lora_weights` is {init}, which changes the base's weights, and llmcls does not repeat that: save it \
                 from peft with path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
            );
        }
        let refused = |key: &String| REFUSED.iter().any(|(name, _)| name == key);
        for key in self.keys.keys().filter(|key| !KNOWN.contains(&key.as_str()) && !refused(key)) {
            if let Some(value) = self.set(key) {
                bail!("`{key}` is {value}, a key that llmcls does not know: it may change what the adapter computes");
            }
        }
        Ok(())
    }

    /// The value of a key, unless it is one that switches it off.
    fn set(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(entries) => !entries.is_empty(),
            Value::String(text) => !text.is_empty(),
            Value::Bool(true) | Value::Number(_) => true,
        })
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.set(key).map_or(Ok(false), |value| {
            value.as_bool().with_context(|| format!("`{key}` is {value}, expected true or false"))
        })
    }

    fn names(&self, key: &str) -> Result<Vec<String>> {
        match self.set(key) {
            None => Ok(Vec::new()),
            Some(Value::String(name)) => Ok(vec![name.clone()]),
            Some(list) => serde_json::from_value(list.clone())
                .with_context(|| format!("`{key}` is {list}, expected a list of names")),
        }
    }

    fn layers(&self) -> Result<Option<LayerFilter>> {
        let Some(value) = self.set("layers_to_transform") else { return Ok(None) };
        let index = |value: &Value| {
            let index = value.as_u64().and_then(|index| usize::try_from(index).ok());
            index.with_context(|| format!("`layers_to_transform` holds {value}, expected the index of a layer"))
        };
        let indices = match value {
            Value::Array(list) => list.iter().map(index).collect::<Result<_>>()?,
            one => vec![index(one)?],
        };
        LayerFilter::new(indices, &self.names("layers_pattern")?).context("layers_pattern").map(Some)
    }
}

/// Names of modules, or an expression.
fn modules(key: &str, value: &Value) -> Result<Targets> {
    match value {
        Value::String(pattern) => Targets::from_pattern(pattern).with_context(|| key.to_owned()),
        list => {
            let names = serde_json::from_value(list.clone());
            Ok(Targets::Names(names.with_context(|| format!("`{key}` is not a list of names"))?))
        }
    }
}

fn rank(key: &str, value: &Value) -> Result<usize> {
    let rank = value.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|rank| *rank > 0);
    rank.with_context(|| format!("`{key}` holds {value}, expected a rank of at least 1"))
}

fn number(key: &str, value: &Value) -> Result<f64> {
    let number = value.as_f64().filter(|number| number.is_finite());
    number.with_context(|| format!("`{key}` holds {value}, expected a number"))
}

/// The entries of a mapping as the file has them: of patterns the first that matches counts.
struct InOrder(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for InOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = InOrder;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of patterns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InOrder, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(InOrder(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(more: &str) -> Result<LoraOptions> {
        let text = format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]{more}}}"#);
        Ok(AdapterConfig::parse(&text)?.resolve()?.0)
    }

    #[test]
    fn keys_that_llmcls_does_not_compute_are_refused_by_name() {
        for (more, name) in [
            (r#", "use_dora": true"#, "use_dora"),
            (r#", "lora_bias": true"#, "lora_bias"),
            (r#", "bias": "all""#, "bias"),
            (r#", "bias": "lora_only""#, "bias"),
            (r#", "alora_invocation_tokens": [0]"#, "alora_invocation_tokens"),
            (r#", "init_lora_weights": "pissa_niter_4""#, "init_lora_weights"),
            (r#", "init_lora_weights": "olora""#, "init_lora_weights"),
            (r#", "init_lora_weights": "loftq""#, "init_lora_weights"),
            (r#", "trainable_token_indices": {"embed_tokens": [1]}"#, "trainable_token_indices"),
            (r#", "layer_replication": [[0, 2]]"#, "layer_replication"),
            (r#", "use_a_new_method": true"#, "use_a_new_method"),
            (r#", "rank_pattern": {"q_proj": 0}"#, "rank_pattern"),
            (r#", "rank_pattern": {"(": 2}"#, "rank_pattern"),
            (r#", "layers_to_transform": [-1]"#, "layers_to_transform"),
            (r#", "exclude_modules": "(""#, "exclude_modules"),
        ] {
            let error = format!("{:#}", resolve(more).expect_err(more));
            assert!(error.contains(name), "{error}");
        }
        let ia3 = AdapterConfig::parse(r#"{"peft_type": "IA3"}"#).unwrap().resolve().unwrap_err().to_string();
        assert!(ia3.contains("IA3"), "{ia3}");
    }

    #[test]
    fn keys_that_change_nothing_in_a_trained_adapter_are_accepted() {
        for more in [
            r#", "use_dora": false, "lora_bias": false, "loftq_config": {}, "megatron_core": "megatron.core""#,
            r#", "init_lora_weights": "gaussian", "a_new_key": null, "another": false, "list": []"#,
            r#", "init_lora_weights": "orthogonal", "qalora_group_size": 16, "peft_version": "0.21.2""#,
            r#", "layers_to_transform": 1, "layers_pattern": "layers", "exclude_modules": ["k_proj"]"#,
        ] {
            resolve(more).expect(more);
        }
    }

    #[test]
    fn patterns_keep_the_order_of_the_file() {
        let lora = resolve(r#", "rank_pattern": {"q_proj": 2, "layers.1.q_proj": 3}"#).unwrap();
        assert_eq!(lora.shape_of("layers.1.q_proj").unwrap().rank, 2);
    }
}
